"""Where data is: in the message itself, or in a store that a ``DataRef`` leads to."""

from __future__ import annotations

from enum import StrEnum

from somatize_worker.protocol.base import Internal, OneOf
from somatize_worker.protocol.fields import Text
from somatize_worker.protocol.keys import CacheKey
from somatize_worker.protocol.values import Value


class StreamFormat(StrEnum):
    """How the items of a streamed data source are written."""

    JSON_LINES = "json_lines"
    CSV = "csv"
    ARROW = "arrow"
    PROTOBUF = "protobuf"


class DataRef(OneOf, tagging=Internal("type")):
    """Where a value lies."""


class LocalRef(DataRef, name="Local"):
    """A file under the shared folder's root; ``path`` is relative to it."""

    path: Text


class S3Ref(DataRef, name="S3"):
    """An object of an S3-compatible store."""

    bucket: Text
    key: Text
    region: Text | None = None


class CachedRef(DataRef, name="Cached"):
    """A value in the cluster's default store."""

    cache_key: CacheKey


class StreamRef(DataRef, name="Stream"):
    """A source that delivers items one after another."""

    endpoint: Text
    format: StreamFormat


class InlineRef(DataRef, name="Inline"):
    """The value itself."""

    value: Value


class ZarrRef(DataRef, name="Zarr"):
    """An array of a Zarr store."""

    bucket: Text
    array_path: Text
    region: Text | None = None


class InputSource(OneOf, tagging=Internal("source")):
    """How a plan gets its input."""


class InlineInput(InputSource, name="Inline"):
    """The input itself (small data)."""

    value: Value


class ReferenceInput(InputSource, name="Reference"):
    """Where the input lies (large data)."""

    data_ref: DataRef


class OutputDelivery(OneOf, tagging=Internal("delivery")):
    """How a plan's output comes back."""


class InlineOutput(OutputDelivery, name="Inline"):
    """The output itself (small data)."""

    value: Value


class ReferenceOutput(OutputDelivery, name="Reference"):
    """Where the output lies (large data)."""

    data_ref: DataRef
