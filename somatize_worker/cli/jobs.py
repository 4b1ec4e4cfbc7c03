"""Commands about Python jobs: run a folder of source files on a worker, fetch what it left."""

from __future__ import annotations

import json as json_module
import threading
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape

from somatize_worker import protocol
from somatize_worker.cli.job_view import JobView
from somatize_worker.cli.output import Json, Url, console, errors, print_json, print_json_line
from somatize_worker.coordinator import Coordinator, JobHandle
from somatize_worker.errors import InvalidJob

_IGNORED = {"__pycache__", "node_modules", "outputs"}


def job(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the source files.")],
    entry: Annotated[str, typer.Option(help="train.py, pkg/train.py or pkg.train:main.")],
    requirements: Annotated[Path | None, typer.Option("--requirements", "-r", help="A requirements file.")] = None,
    on: Annotated[str, typer.Option(help="Tag or worker id.")] = "cpu",
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE; may be repeated.")] = None,
    input: Annotated[Path | None, typer.Option(help="A JSON file, handed to the job.")] = None,
    timeout: Annotated[float, typer.Option(help="Deadline in seconds; 0: none.")] = 0.0,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the job's id and return at once.")] = False,
    wait: Annotated[bool, typer.Option(help="Queue it even if nobody serves the tag yet.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Run source files on a worker, in an environment of their own; show phases, progress, metrics and output.

    Ctrl-C cancels. The exit status is 0 if the job succeeded.

    Example: [cyan]somatize job . --entry train.py -r requirements.txt --on gpu -p lr=0.1[/]
    """
    message = protocol.PythonPipelineJob(
        job_id=f"job-{uuid.uuid4().hex[:12]}",
        pipeline_id=folder.resolve().name,
        investigation_id="",
        files=tuple(_files(folder)),
        requirements=requirements.read_text() if requirements else "",
        entry_point=entry,
        input_data=json_module.loads(input.read_text()) if input else None,
        params=dict(_param(word) for word in param or ()),
    )
    with Coordinator(url) as coordinator:
        handle = coordinator.assign_python_job(message, on, wait=wait, timeout_s=timeout)
        if detach:
            print_json({"job_id": handle.job_id}) if json else console.print(handle.job_id, highlight=False)
            return
        try:
            success = _follow_json(handle) if json else _follow(handle, message)
        except KeyboardInterrupt:
            handle.cancel("Ctrl-C")
            errors.print(f"cancelled {handle.job_id}", style="yellow", highlight=False)
            raise typer.Exit(130) from None
    if not success:
        raise typer.Exit(1)


def _files(folder: Path) -> list[protocol.PipelineFile]:
    if not folder.is_dir():
        raise InvalidJob(f"{folder} is not a folder")
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part in _IGNORED or part.startswith(".") for part in parts):
            try:
                found.append(protocol.PipelineFile(path="/".join(parts), content=path.read_text()))
            except UnicodeDecodeError:
                errors.print(f"left out {path}: not a text file", style="yellow", highlight=False)
    return found


def _param(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{word!r}: write NAME=VALUE, as in lr=0.1", param_hint="--param")
    try:
        return name, json_module.loads(text)
    except ValueError:
        return name, text


def _follow(handle: JobHandle, message: protocol.PythonPipelineJob) -> bool:
    view = JobView(f"{message.entry_point} of {message.pipeline_id}  [dim]{handle.job_id}[/]")
    printer = threading.Thread(target=_print_lines, args=(handle,), daemon=True)
    with Live(view, console=console, refresh_per_second=12):
        printer.start()
        for progress in handle.progress():
            view.take(progress)
        state, said = handle.ending()
        printer.join()
        view.ended(state)
    if state != "succeeded":
        if said.get("traceback"):
            errors.print(escape(said["traceback"].rstrip()), highlight=False)
        errors.print(f"[red]{state}[/]: {escape(str(said.get('error', '')))}", highlight=False)
        return False
    seconds = said["duration_ms"] / 1000
    console.print(f"[green]succeeded[/] in {seconds:.2f} s on {said['worker_id']}", highlight=False)
    if said.get("metrics") is not None:
        console.print_json(data=said["metrics"])
    if said.get("files"):
        console.print(f"outputs: {', '.join(sorted(said['files']))}", highlight=False)
        console.print(f"[dim]fetch them: somatize fetch {handle.job_id}[/]", highlight=False)
    return True


def _print_lines(handle: JobHandle) -> None:
    for line in handle.output_lines(follow=True):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _follow_json(handle: JobHandle) -> bool:
    for progress in handle.progress():
        print_json_line(protocol.to_json(progress))
    result = handle.result()
    print_json_line(protocol.to_json(result))
    return bool(result.success)


def fetch(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="Which files; default: all.")] = None,
    to: Annotated[Path, typer.Option(help="Folder to copy them to.")] = Path("outputs"),
    url: Url = None,
    json: Json = False,
) -> None:
    """Copy the files that a job left under outputs/ to this machine.

    Example: [cyan]somatize fetch job-3f2a… model.bin --to results[/]
    """
    with Coordinator(url) as coordinator:
        paths = coordinator.job(job_id).fetch(to, names or None)
    if json:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            console.print(str(path), highlight=False)
