"""``StreamMessage``: data sent to a plan in chunks, results coming back chunk by chunk."""

from __future__ import annotations

from somatize_worker.protocol.assignments import PlanResult, SerializedPlan
from somatize_worker.protocol.base import Internal, OneOf
from somatize_worker.protocol.fields import Count, Text
from somatize_worker.protocol.values import Value


class StreamMessage(OneOf, tagging=Internal("type")):
    """One message of a stream."""


class StreamBegin(StreamMessage):
    """A stream starts; ``total_chunks`` is null if nobody knows yet. The plan's input comes as chunks."""

    stream_id: Text
    plan_id: Text
    total_chunks: Count | None = None
    plan: SerializedPlan


class ChunkData(StreamMessage):
    """A chunk of input."""

    stream_id: Text
    chunk_index: Count
    value: Value


class StreamEnd(StreamMessage):
    """No more chunks."""

    stream_id: Text


class ChunkResult(StreamMessage):
    """What became of a chunk."""

    stream_id: Text
    chunk_index: Count
    value: Value


class StreamComplete(StreamMessage):
    """Every chunk is done."""

    stream_id: Text
    result: PlanResult
