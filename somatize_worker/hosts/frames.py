"""Frames between a worker and its child processes: 4 bytes of length, big-endian, then one packed list.

The first item of the list is a text, the frame's kind. Both ends use :class:`Channel` over a Unix socket pair.
Standard library, msgpack and numpy only: this file runs in filter hosts of any environment.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from somatize_worker.errors import HostError
from somatize_worker.packing import pack, unpack

MAX_FRAME_BYTES: Final = 1 << 30
_LENGTH: Final = struct.Struct(">I")
_JOIN_BELOW_BYTES: Final = 16 << 10  # below this one copy is cheaper than a gathered write
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)  # macOS has no MSG_NOSIGNAL


class Channel:
    """One end of a stream of frames.

    ``send`` may be called from many threads; frames never interleave. ``receive`` and ``receive_ready`` belong to
    one thread at a time. Nothing is read ahead of the frame that is handed out, so :meth:`fileno` is readable
    exactly when there is more to receive. Works on blocking and non-blocking sockets alike.
    """

    def __init__(self, sock: socket.socket, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._socket = sock
        self._max_frame_bytes = max_frame_bytes
        self._sending = threading.Lock()
        self._broken = False
        self._target = bytearray(_LENGTH.size)  # what is being filled: a length, or a frame's body
        self._filled = 0
        self._in_body = False

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """The channel over an inherited socket; the number is this channel's from now on and not inheritable."""
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        return cls(sock)

    def fileno(self) -> int:
        """The socket's number, for ``select`` and ``poll``; -1 once closed."""
        return self._socket.fileno()

    def send(self, frame: Sequence[Any], *, stall_s: float | None = None) -> None:
        """Send ``[kind, ...]``, waiting for the other end to take it.

        Args:
            frame: a list that :func:`packing.pack` can pack.
            stall_s: give up after so many seconds in which the other end took nothing; None: wait for ever.

        Raises:
            HostError: the frame is larger than this channel's limit. Nothing was sent.
            TypeError: something in it cannot be packed. Nothing was sent.
            TimeoutError: the other end took nothing for ``stall_s``. The channel can send no more.
            OSError: the other end is gone (usually ``BrokenPipeError``).
        """
        body = pack(list(frame))
        if len(body) > self._max_frame_bytes:
            raise HostError(
                f"a {frame[0]!r} frame of {len(body)} bytes is larger than the limit of {self._max_frame_bytes} "
                "bytes; large values travel as references into the data store",
                kind=str(frame[0]),
                size_bytes=len(body),
            )
        header = _LENGTH.pack(len(body))
        with self._sending:
            if self._broken:
                raise BrokenPipeError("an earlier frame was sent only in part")
            if len(body) < _JOIN_BELOW_BYTES:
                self._send_all([memoryview(header + body)], stall_s)
            else:
                self._send_all([memoryview(header), memoryview(body)], stall_s)

    def _send_all(self, parts: list[memoryview], stall_s: float | None) -> None:
        self._broken = True  # until everything is out
        while parts:
            try:
                sent = self._socket.sendmsg(parts, (), _SEND_FLAGS)
            except BlockingIOError:
                if not _wait(self._socket.fileno(), select.POLLOUT, stall_s):
                    raise TimeoutError(f"the other end took nothing for {stall_s} s") from None
                continue
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]
        self._broken = False

    def receive(self, timeout_s: float | None = None) -> list[Any] | None:
        """The next frame, or None when none was complete within ``timeout_s`` (None: wait for ever).

        A frame that is half here when time is up is not lost: the next call goes on with it.

        Raises:
            EOFError: the other end is gone, between two frames or within one.
            HostError: what came is not a frame (larger than the limit, or not a packed list).
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            frame = self.receive_ready()
            if frame is not None:
                return frame
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _wait(self._socket.fileno(), select.POLLIN, left):
                return None

    def receive_ready(self) -> list[Any] | None:
        """As :meth:`receive`, but never waits: None when no frame is complete yet."""
        while True:
            if not self._fill():
                return None
            if self._in_body:
                return self._take_frame()
            (length,) = _LENGTH.unpack(self._target)
            if length > self._max_frame_bytes:
                raise HostError(
                    f"a frame of {length} bytes was announced, more than the limit of {self._max_frame_bytes}: "
                    "something else wrote to the wire, or a value that should be a reference was sent whole",
                    size_bytes=length,
                )
            self._target, self._filled, self._in_body = bytearray(length), 0, True

    def _fill(self) -> bool:
        """Read into what is being filled; True when it is full, False when reading would wait."""
        view = memoryview(self._target)
        while self._filled < len(view):
            try:
                count = self._socket.recv_into(view[self._filled :], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except ConnectionError as error:  # the other end closed with unread frames of ours
                raise EOFError("the other end is gone") from error
            if count == 0:
                within = self._in_body or self._filled
                raise EOFError("the other end is gone" + (", in the middle of a frame" if within else ""))
            self._filled += count
        return True

    def _take_frame(self) -> list[Any]:
        body = self._target
        self._target, self._filled, self._in_body = bytearray(_LENGTH.size), 0, False
        try:
            frame = unpack(body)
        except ValueError as error:
            raise HostError(f"a frame of {len(body)} bytes cannot be read: {error}") from error
        if not isinstance(frame, list) or not frame or not isinstance(frame[0], str):
            raise HostError("a frame must be a list that starts with its kind")
        return frame

    def close(self) -> None:
        """Close this end; the other one reads end of file. Closing twice does nothing."""
        self._socket.close()


def _wait(fd: int, events: int, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
