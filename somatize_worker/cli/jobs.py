"""Commands about Python jobs: run a folder of source files on a worker, fetch what it left."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from typer.core import TyperGroup

from somatize_worker.cli.client import connected, find_plan
from somatize_worker.cli.job_files import parameter, read_json, read_text, source_files
from somatize_worker.cli.job_view import JobView
from somatize_worker.cli.output import Json, Url, console, errors, print_json, print_json_line
from somatize_worker.readable import duration

if TYPE_CHECKING:
    from somatize_worker import protocol
    from somatize_worker.coordinator import JobHandle

_RUN: Final = "run"


class _RunsByDefault(TyperGroup):
    """``somatize job DIR …`` is ``somatize job run DIR …``, and so is ``somatize job --help``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunsByDefault,
    help="Run a folder of source files on a worker (somatize job DIR); fetch what a job left (somatize job fetch JOB).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command(_RUN)
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the source files.")],
    entry: Annotated[str, typer.Option(help="train.py, pkg/train.py or pkg.train:main.")],
    requirements: Annotated[Path | None, typer.Option("--requirements", "-r", help="A requirements file.")] = None,
    on: Annotated[str, typer.Option(help="Tag or worker id.")] = "cpu",
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="JSON or text; may be repeated.")
    ] = None,
    input: Annotated[Path | None, typer.Option(help="A JSON file, handed to the job.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Deadline in seconds; 0: none.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the job's id and return at once.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Queue it even if nobody serves the tag yet.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Run source files on a worker, in an environment of their own; show phases, progress, metrics and output.

    Ctrl-C cancels the job. The exit status is 0 if it succeeded. What it left under outputs/ is fetched with
    [cyan]somatize job fetch JOB[/].

    Example: [cyan]somatize job . --entry train.py -r requirements.txt --on gpu -p lr=0.1[/]
    """
    from somatize_worker import protocol

    message = protocol.PythonPipelineJob(
        job_id=f"job-{uuid.uuid4().hex[:12]}",
        pipeline_id=folder.resolve().name,
        investigation_id="",
        files=tuple(protocol.PipelineFile(path=path, content=content) for path, content in source_files(folder)),
        requirements=read_text(requirements) if requirements else "",
        entry_point=entry,
        input_data=read_json(input) if input else None,
        params=dict(parameter(word) for word in param or ()),
    )
    policy = {} if timeout is None else {"timeout": timeout}
    with connected(url) as coordinator:
        handle = coordinator.assign_python_job(message, on, wait=wait, **policy)
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


def _follow(handle: JobHandle, message: protocol.PythonPipelineJob) -> bool:
    from somatize_worker.coordinator.showing import showing

    view = JobView(f"{message.entry_point} of {message.pipeline_id}", handle.job_id)
    printer = threading.Thread(target=_print_lines, args=(handle,), daemon=True)
    with showing(view, console):
        printer.start()
        for progress in handle.progress():
            view.take(progress)
        state, said = handle.ending()
        printer.join()
        view.ended(state, str(said.get("error_type", "")))
    if state != "succeeded":  # a traceback has been shown: the job prints it, as any Python program does
        errors.print(f"[red]{state}[/]: {escape(str(said.get('error', '')))}", highlight=False, soft_wrap=True)
        return False
    took = duration(said["duration_ms"] / 1000)
    console.print(f"[green]succeeded[/] in {took} on {escape(said['worker_id'])}", highlight=False)
    if said.get("metrics") is not None:
        console.print_json(data=said["metrics"], indent=None)
    if said.get("files"):
        console.print(f"left {', '.join(map(escape, sorted(said['files'])))}", highlight=False)
        console.print(f"[dim]fetch with[/] somatize job fetch {handle.job_id}", highlight=False)
    return True


def _print_lines(handle: JobHandle) -> None:
    from somatize_worker.jobs.printed import parse_object, step_of

    for line in handle.output_lines(follow=True):
        said = parse_object(line)
        if said is None or step_of(said) is None:  # steps are in the picture
            console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)


def _follow_json(handle: JobHandle) -> bool:
    from somatize_worker import protocol

    for progress in handle.progress():
        print_json_line(protocol.to_data(progress))
    result = handle.result()
    print_json_line(protocol.to_data(result))
    return bool(result.success)


@app.command("fetch")
def fetch(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, or the beginning of one that is unique.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Which files; default: all.")] = None,
    to: Annotated[Path, typer.Option(help="Folder to copy them to.")] = Path("outputs"),
    url: Url = None,
    json: Json = False,
) -> None:
    """Copy the files that a job left under outputs/ to this machine; waits for the job to end.

    Example: [cyan]somatize job fetch job-3f2a model.bin --to results[/]
    """
    with connected(url) as coordinator:
        paths = coordinator.job(find_plan(coordinator, job)).fetch(to, names or None)
    if json:
        print_json([str(path) for path in paths])
    elif not paths:
        errors.print("the job left no files", style="dim")
    for path in paths if not json else ():
        console.out(path, highlight=False)
