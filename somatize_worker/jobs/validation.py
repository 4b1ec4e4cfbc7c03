"""What a Python job must be like before anything of it is written or run. For clients and for workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from somatize_worker import requirements
from somatize_worker.errors import EnvironmentFailed, InvalidJob
from somatize_worker.jobs.entry import EntryPoint
from somatize_worker.jobs.paths import check_id, check_path, check_together
from somatize_worker.settings import Settings

_MAX_LABEL_CHARS: Final = 256


@dataclass(frozen=True)
class CheckedJob:
    """A job that may run. ``files`` are (path, content); ``params`` and ``input_data`` are JSON text."""

    job_id: str
    pipeline_id: str
    investigation_id: str
    files: tuple[tuple[str, bytes], ...]
    requirements: tuple[str, ...]
    entry: EntryPoint
    params: bytes
    input_data: bytes | None


def check_job(job: Any, settings: Settings) -> CheckedJob:
    """A :class:`~somatize_worker.protocol.PythonPipelineJob`, or its JSON form as a mapping, checked whole.

    Whether requirements by URL or path are allowed is for the worker that builds the environment to say; here they
    only have to be well-formed.

    Raises:
        InvalidJob: the first thing that is wrong (which file, which line, which limit).
    """
    fields = _fields(job)
    files = _check_files(fields["files"], settings)
    entry = EntryPoint.parse(str(fields["entry_point"]))
    entry.check_among([path for path, _ in files])
    return CheckedJob(
        job_id=check_id(str(fields["job_id"])),
        pipeline_id=_label(fields, "pipeline_id"),
        investigation_id=_label(fields, "investigation_id"),
        files=files,
        requirements=_requirements(str(fields.get("requirements") or "")),
        entry=entry,
        params=_json(_params(fields.get("params")), "params", settings),
        input_data=None if fields.get("input_data") is None else _json(fields["input_data"], "input_data", settings),
    )


def _fields(job: Any) -> Mapping[str, Any]:
    fields = job.model_dump() if hasattr(job, "model_dump") else job
    missing = [name for name in ("job_id", "files", "entry_point") if not fields.get(name)]
    if missing:
        raise InvalidJob(f"the job has no {', '.join(missing)}: give it an id, its files and an entry point")
    return fields  # type: ignore[no-any-return]  # a pydantic model or a mapping: both give a mapping


def _check_files(files: Any, settings: Settings) -> tuple[tuple[str, bytes], ...]:
    if len(files) > settings.job_files_limit:
        raise InvalidJob(
            f"the job has {len(files)} files, {settings.job_files_limit} are allowed (SOMA_JOB_FILES_LIMIT); "
            "send data through the store, and only sources as files"
        )
    checked: list[tuple[str, bytes]] = []
    for file in files:
        path = check_path(str(file["path"]))
        try:
            checked.append((path, str(file["content"]).encode()))
        except UnicodeEncodeError as error:
            raise InvalidJob(
                f"the job's file {path!r} is refused: its text is not Unicode ({error})", path=path
            ) from None
    size = sum(len(content) for _, content in checked)
    if size > settings.job_files_limit_bytes:
        largest = max(checked, key=lambda file: len(file[1]))
        raise InvalidJob(
            f"the job's files have {size} bytes, {settings.job_files_limit_bytes} are allowed "
            f"(SOMA_JOB_FILES_LIMIT_BYTES); the largest is {largest[0]!r} with {len(largest[1])}"
        )
    check_together(path for path, _ in checked)
    return tuple(checked)


def _label(fields: Mapping[str, Any], name: str) -> str:
    label = str(fields.get(name) or "")
    if len(label) > _MAX_LABEL_CHARS or not label.isprintable():
        raise InvalidJob(f"the job's {name} {label[:80]!r} is not a line of at most {_MAX_LABEL_CHARS} characters")
    return label


def _requirements(text: str) -> tuple[str, ...]:
    try:
        return requirements.normalise(text, allow=requirements.ANY_KIND)
    except EnvironmentFailed as error:
        raise InvalidJob(error.message, **error.details) from None


def _params(params: Any) -> Any:
    if params is not None and not isinstance(params, Mapping):
        raise InvalidJob(f"the job's params must be a JSON object (names and values), not {type(params).__name__}")
    return params or {}


def _json(value: Any, name: str, settings: Settings) -> bytes:
    try:
        text = json.dumps(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob(f"the job's {name} cannot be written as JSON: {error}") from None
    if len(text) > settings.job_files_limit_bytes:
        raise InvalidJob(
            f"the job's {name} has {len(text)} bytes as JSON, {settings.job_files_limit_bytes} are allowed "
            "(SOMA_JOB_FILES_LIMIT_BYTES); put large data into the store and send where it lies"
        )
    return text
