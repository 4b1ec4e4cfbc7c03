"""A Python job: source files that run in an environment of their own."""

from __future__ import annotations

from pydantic import Field

from somatize_worker.protocol.base import Message
from somatize_worker.protocol.fields import JsonData, Text


class PipelineFile(Message):
    """A source file."""

    path: Text
    content: Text


class PythonPipelineJob(Message):
    """Source files, requirements and the entry point to run.

    ``requirements`` is the content of a ``requirements.txt``; ``input_data`` and ``params`` are JSON data.
    """

    job_id: Text
    pipeline_id: Text
    investigation_id: Text
    files: tuple[PipelineFile, ...]
    requirements: Text
    entry_point: Text
    input_data: JsonData = None
    params: JsonData = Field(default_factory=dict)
