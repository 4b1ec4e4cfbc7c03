"""Values in the Redis or Valkey server, for machines that share no folder.

    soma:data:<64 hex>                  a head (see ``stores.parts``), then the value's file form (``stores.formats``)
    soma:data:<64 hex>:<nonce>:<n>      part n of the body, when the value is larger than one part

The head is written last, and only if nobody else's is there, so a half-written value is never seen and writers of
one key cannot mix; parts without a head expire within minutes. A large tensor's head key also holds its ``.npy``
header, so that metadata take one round trip. Every entry expires ``data_ttl_s`` after its last use.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis

from somatize_worker.errors import InvalidSettings, MissingData, ServerUnreachable, StoreError, StoreFull
from somatize_worker.packing import Reference
from somatize_worker.ports import TensorInfo
from somatize_worker.settings import Settings
from somatize_worker.stores import formats, npy
from somatize_worker.stores.disk import Data, new_file, opened, read_whole, real_inside, size_text
from somatize_worker.stores.parts import HEAD_BYTES, Head, cut, read_parts
from somatize_worker.stores.references import cached, checked_key, field, refuse, text
from somatize_worker.stores.workspace import Workspace

PART_BYTES: Final = 2 << 20
"""Far below the server's limit of 512 MB: neither side holds much at a time, and the server never stalls for long. It
is the fastest size too: 80 MB are written at 1 GB/s in parts of 1 to 4 MB, and at a quarter of that in parts of 8."""
_FIRST_LOOK_BYTES: Final = 1024
_UNFINISHED_MS: Final = 600_000
_RENEW_EVERY_S: Final = 120.0
_PARTS_LINGER_MS: Final = 60_000
"""Parts outlive their head by this much, so that a head never lacks a part."""


class RedisStore:
    """A :class:`~somatize_worker.ports.DataStore` in the server.

    Args:
        client: bytes in, bytes out (``decode_responses`` off).
        url: how the store is named to users, and compared between workers; without a password.
        prefix: of all keys.
        part_bytes: a larger value is stored in parts of this size.

    Raises:
        InvalidSettings: the client decodes responses.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        *,
        url: str = "redis",
        prefix: str = "soma:data:",
        part_bytes: int = PART_BYTES,
    ) -> None:
        if client.get_connection_kwargs().get("decode_responses"):
            raise InvalidSettings("the Redis store needs a client that returns bytes: leave decode_responses off")
        self.url = url
        self._client: Any = client  # execute_command has no types
        self._ttl_s = settings.data_ttl_s
        self._ttl_ms = max(1, int(settings.data_ttl_s * 1000))
        self._prefix = prefix
        self._part_bytes = part_bytes
        self._workspace: Workspace | None = None

    # ── values ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if key is not None and self._look(checked_key(key)) is not None:
            return cached(checked_key(key))
        encoded = formats.encode(value)
        return self._upload(key, encoded.suffix, encoded.head, encoded.chunks(), encoded.body_nbytes)

    def get(self, reference: Reference) -> Any:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if reference.type == "Inline":
            return field(reference, "value")
        name = self._name(self._key(reference))
        data = self._call("GETEX", name, "PX", self._ttl_ms)
        head = self._head(reference, name, data)
        content: Data = memoryview(data)[HEAD_BYTES:]
        if head.parts:
            content = self._join(reference, name, head, content)
        try:
            return formats.decode(head.suffix, content)
        except ValueError as error:
            raise formats.damaged(text(reference), error) from error

    def find(self, key: bytes) -> Reference | None:
        """See :class:`~somatize_worker.ports.DataStore`. Finding counts as use."""
        return None if self._look(checked_key(key)) is None else cached(checked_key(key))

    def info(self, reference: Reference) -> TensorInfo:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if reference.type == "Inline":
            return formats.info_of(field(reference, "value"))
        return formats.tensor_info(self._array_head(reference)[1])

    def rows(self, reference: Reference, start: int, stop: int) -> Any:
        """See :class:`~somatize_worker.ports.DataStore`. Only the bytes of these rows cross the network."""
        if reference.type == "Inline":
            return formats.rows_of(field(reference, "value"), start, stop)
        head, array = self._array_head(reference)
        formats.check_range(start, stop)
        total = array.shape[0] if array.shape else 1
        start, stop = min(start, total), min(stop, total)
        wanted = npy.Header(array.dtype, (stop - start, *array.shape[1:]), False, 0)
        data = np.empty(wanted.nbytes, np.uint8)
        begin = array.offset + start * array.row_nbytes
        done = 0
        for piece in self._pieces(reference, head, begin, begin + wanted.nbytes):
            data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        return npy.array(wanted, data.data.toreadonly())

    def delete(self, reference: Reference) -> None:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if reference.type == "Inline":
            return
        name = self._name(self._key(reference))
        start = self._call("GETRANGE", name, 0, HEAD_BYTES - 1)
        if start:
            self._remove(name, _parsed(reference, start))

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    def fetch(self, reference: Reference, folder: Path) -> Path:
        """See :class:`~somatize_worker.ports.DataStore`. A copy that is in ``folder`` already is used again."""
        if reference.type == "Inline":
            return formats.write(folder / formats.new_name(), field(reference, "value"))
        key = self._key(reference)
        head = self._look(key)
        if head is None:
            raise self._missing(reference)
        path = folder / f"{key.hex()}{head.suffix}"
        with suppress(FileNotFoundError):
            os.utime(path)
            return path
        with new_file(path, head.nbytes) as append:
            for piece in self._pieces(reference, head, 0, head.nbytes):
                append(piece)
        return path

    def adopt(self, path: Path, *, key: bytes | None = None) -> Reference:
        """See :class:`~somatize_worker.ports.DataStore`.

        Raises:
            UnsafePath: the file is not in :meth:`workspace`.
        """
        path = real_inside(self.workspace(), path)
        formats.check_suffix(path)
        if key is not None and self._look(checked_key(key)) is not None:
            path.unlink(missing_ok=True)
            return cached(checked_key(key))
        with opened(path) as (descriptor, size):
            lead = b""
            if path.suffix == ".npy":
                try:
                    lead = read_whole(descriptor, npy.PREFIX_BYTES)
                    lead += read_whole(descriptor, npy.header_nbytes(lead) - len(lead))
                except ValueError as error:
                    raise formats.damaged(str(path), error) from error
            body = read_parts(descriptor, size - len(lead), self._part_bytes)
            reference = self._upload(key, path.suffix, lead, body, size - len(lead))
        path.unlink(missing_ok=True)
        return reference

    def workspace(self) -> Path:
        """See :class:`~somatize_worker.ports.DataStore`. A folder of this process's, gone when it ends."""
        return self._own_workspace().folder

    def sweep(self) -> int:
        """Remove files that nobody wants from this machine's workspaces; the server itself removes what expires."""
        return self._own_workspace().sweep(self._ttl_s)

    def _own_workspace(self) -> Workspace:
        if self._workspace is None:
            self._workspace = Workspace()
        return self._workspace

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _upload(self, key: bytes | None, suffix: str, lead: bytes, body: Iterable[Data], body_bytes: int) -> Reference:
        key = secrets.token_bytes(32) if key is None else checked_key(key)
        name = self._name(key)
        if len(lead) + body_bytes <= self._part_bytes:
            head = Head(suffix, len(lead) + body_bytes, 0, self._part_bytes, 0)
            with self._room_for(head.nbytes):
                self._call("SET", name, b"".join([head.pack(), lead, *body]), "NX", "PX", self._ttl_ms)
            return cached(key)
        head = Head(suffix, len(lead), body_bytes, self._part_bytes, secrets.randbits(64))
        try:
            with self._room_for(head.nbytes):
                self._upload_parts(name, head, body)
                self._call("SET", name, head.pack() + lead, "NX", "PX", self._ttl_ms)
        finally:
            self._tidy(key, head)
        return cached(key)

    def _upload_parts(self, name: str, head: Head, body: Iterable[Data]) -> None:
        """Write the parts. Until all are there they live for minutes only, renewed while we write."""
        renewed = time.monotonic()
        names = _part_names(name, head)
        for number, part in enumerate(cut(body, head.part_bytes)):
            self._call("SET", names[number], part, "PX", _UNFINISHED_MS)
            if time.monotonic() - renewed > _RENEW_EVERY_S:
                self._expire(names[: number + 1], _UNFINISHED_MS)
                renewed = time.monotonic()
        if self._expire(names, self._ttl_ms + _PARTS_LINGER_MS) != head.parts:
            raise StoreError(
                f"parts of a value of {size_text(head.nbytes)} vanished from the server while it was written: the "
                "writer was paused, or the server evicts keys (set its maxmemory-policy to noeviction); write it again"
            )

    def _tidy(self, key: bytes, head: Head) -> None:
        """Remove our parts unless the value is ours: the write failed, or another writer of the key was quicker.

        The answer to our own SET does not tell: it may be lost, or be that of a repeated SET. If the server does not
        answer now, the parts expire by themselves.
        """
        try:
            there = self._look(key)
            if there is None or there.nonce != head.nonce:
                self._call("UNLINK", *_part_names(self._name(key), head))
        except ServerUnreachable:
            return

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, key: bytes) -> Head | None:
        """The head of a value that is there completely, marked as used."""
        name = self._name(key)
        start, _ = self._calls(("GETRANGE", name, 0, HEAD_BYTES - 1), ("PEXPIRE", name, self._ttl_ms))
        head = _parsed(cached(key), start) if start else None
        return head if head is not None and self._complete(name, head) else None

    def _head(self, reference: Reference, name: str, data: bytes | None) -> Head:
        """The head at the start of ``data``, of a value that is there completely."""
        head = _parsed(reference, data) if data else None
        if head is None or not self._complete(name, head):
            raise self._missing(reference)
        return head

    def _complete(self, name: str, head: Head) -> bool:
        """Mark the parts as used; if the server has evicted any, remove the rest so that the value can be put again."""
        if not head.parts or self._expire(_part_names(name, head), self._ttl_ms + _PARTS_LINGER_MS) == head.parts:
            return True
        self._remove(name, head)
        return False

    def _array_head(self, reference: Reference) -> tuple[Head, npy.Header]:
        """The head and the ``.npy`` header of a tensor, marked as used."""
        name = self._name(self._key(reference))
        last = HEAD_BYTES + _FIRST_LOOK_BYTES - 1
        data, _ = self._calls(("GETRANGE", name, 0, last), ("PEXPIRE", name, self._ttl_ms))
        head = self._head(reference, name, data)
        if head.suffix != ".npy":
            raise formats.not_a_tensor(text(reference), head.suffix)
        start = data[HEAD_BYTES:]
        try:
            length = npy.header_nbytes(start[: npy.PREFIX_BYTES])
            if len(start) < length:
                start = self._range(reference, name, HEAD_BYTES, HEAD_BYTES + length)
            return head, npy.parse(start[:length])
        except ValueError as error:
            raise formats.damaged(text(reference), error) from error

    def _join(self, reference: Reference, name: str, head: Head, lead: Data) -> memoryview:
        """The whole value, in one place; beside it only one part is in memory at a time."""
        whole = np.empty(head.nbytes, np.uint8)
        whole[: head.lead_bytes] = np.frombuffer(lead, np.uint8)
        done = head.lead_bytes
        for number, part_name in enumerate(_part_names(name, head)):
            part = self._call("GET", part_name)
            if part is None or len(part) != head.part_nbytes(number):
                raise self._missing(reference)
            whole[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return whole.data.toreadonly()

    def _pieces(self, reference: Reference, head: Head, begin: int, end: int) -> Iterator[bytes]:
        """Bytes ``begin`` to ``end`` of a value's file form, in pieces of at most one part."""
        name = self._name(self._key(reference))
        lead_end = min(end, head.lead_bytes)
        for low in range(begin, lead_end, self._part_bytes):
            high = min(low + self._part_bytes, lead_end)
            yield self._range(reference, name, HEAD_BYTES + low, HEAD_BYTES + high)
        low, end = max(begin - head.lead_bytes, 0), end - head.lead_bytes
        while low < end:
            number, offset = divmod(low, head.part_bytes)
            count = min(end - low, head.part_bytes - offset)
            yield self._range(reference, _part_name(name, head, number), offset, offset + count)
            low += count

    def _range(self, reference: Reference, name: str, begin: int, end: int) -> bytes:
        data: bytes = self._call("GETRANGE", name, begin, end - 1)
        if len(data) != end - begin:
            raise self._missing(reference)
        return data

    # ── names and calls ──────────────────────────────────────────────────────────────────────────────────────────

    def _key(self, reference: Reference) -> bytes:
        if reference.type != "Cached":
            refuse(reference, self.url)
        return checked_key(field(reference, "cache_key"))

    def _name(self, key: bytes) -> str:
        return self._prefix + key.hex()

    def _remove(self, name: str, head: Head) -> None:
        self._call("UNLINK", name, *_part_names(name, head))

    def _expire(self, names: list[str], ttl_ms: int) -> int:
        """Set the expiry of several keys; returns how many of them are there."""
        return sum(self._calls(*(("PEXPIRE", name, ttl_ms) for name in names)))

    def _call(self, *command: Any) -> Any:
        with _server_errors():
            return self._client.execute_command(*command)

    def _calls(self, *commands: tuple[Any, ...]) -> list[Any]:
        with _server_errors(), self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())

    @contextmanager
    def _room_for(self, nbytes: int) -> Iterator[None]:
        try:
            yield
        except redis.OutOfMemoryError as error:
            memory = self._call("INFO", "memory")
            limit = int(memory["maxmemory"])
            free = max(0, limit - int(memory["used_memory"]))
            raise StoreFull(
                f"no room in the server for {size_text(nbytes)} ({size_text(free)} free of {size_text(limit)} "
                "maxmemory): raise the server's maxmemory, shorten SOMA_DATA_TTL_S, or keep data in a shared folder "
                "(SOMA_STORE=file:///…)",
                folder=self.url,
                needed_bytes=nbytes,
                free_bytes=free,
            ) from error

    def _missing(self, reference: Reference) -> MissingData:
        return MissingData(
            f"no data behind {text(reference)} in the server: it has expired ({self._ttl_s:g} s after its last use, "
            "SOMA_DATA_TTL_S), was deleted or evicted, or was written to another store (is SOMA_STORE the same for "
            "every client and worker?); submit the data again",
            reference=repr(reference),
            store=self.url,
        )


@contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise ServerUnreachable(
            f"the server that keeps the data does not answer ({error}): see that it runs, and that SOMA_REDIS_URL "
            "and SOMA_STORE name it"
        ) from error
    except redis.OutOfMemoryError:
        raise
    except redis.ResponseError as error:
        raise StoreError(f"the server refused to store or read data: {error}") from error


def _parsed(reference: Reference, data: bytes) -> Head:
    try:
        return Head.unpack(data)
    except ValueError as error:
        raise formats.damaged(text(reference), error) from error


def _part_name(name: str, head: Head, number: int) -> str:
    return f"{name}:{head.nonce:016x}:{number}"


def _part_names(name: str, head: Head) -> list[str]:
    return [_part_name(name, head, number) for number in range(head.parts)]
