"""What children print: pipes drained by one thread, kept in bounded memory, handed out as lines.

A child that prints megabytes waits at most for the pump, never for a plan's supervisor; what nobody takes in time
is left out from the middle, with a note, and the newest is kept.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

LINE_LIMIT_BYTES: Final = 8 << 10
TAIL_BYTES: Final = 16 << 10
NOTE: Final = "note"  # the "stream" of lines that tell what was left out
_READ_BYTES: Final = 64 << 10
_MERGE_BELOW_BYTES: Final = 512


class OutputLine(NamedTuple):
    """One printed line, without its end. ``stream`` is ``stdout``, ``stderr`` or ``note``."""

    stream: str
    text: str


class Lines:
    """Cuts the bytes of several streams into lines, in the order in which lines are completed."""

    def __init__(self, limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._rest: dict[str, bytes] = {}

    def feed(self, stream: str, data: bytes) -> list[OutputLine]:
        """The lines that ``data`` completes. A line beyond the limit comes in parts."""
        *whole, rest = (self._rest.pop(stream, b"") + data).split(b"\n")
        lines = [OutputLine(stream, text) for line in whole for text in self._parts(line)]
        while len(rest) > self._limit:
            cut = _character_boundary(rest, self._limit)
            lines.append(OutputLine(stream, _text(rest[:cut])))
            rest = rest[cut:]
        if rest:
            self._rest[stream] = rest
        return lines

    def flush(self) -> list[OutputLine]:
        """What was printed since the last line's end, as lines."""
        rest, self._rest = self._rest, {}
        return [OutputLine(stream, text) for stream, line in rest.items() for text in self._parts(line)]

    def _parts(self, line: bytes) -> list[str]:
        parts = []
        while len(line) > self._limit:
            cut = _character_boundary(line, self._limit)
            parts.append(_text(line[:cut]))
            line = line[cut:]
        return [*parts, _text(line)]


def _character_boundary(data: bytes, limit: int) -> int:
    """The largest cut at or below ``limit`` that does not split a UTF-8 character."""
    for cut in range(limit, max(limit - 4, 0), -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return limit


def _text(line: bytes) -> str:
    """As a terminal would show it: what a carriage return overwrote is gone."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")


class Output:
    """What one child printed. All methods may be called from any thread.

    Args:
        fds: the reading end of each stream's pipe; this object owns them.
        limit_bytes: what is kept for :meth:`take`; beyond it the oldest is left out.
    """

    def __init__(self, fds: Mapping[str, int], limit_bytes: int) -> None:
        self.on_output: Callable[[], None] | None = None
        """Called by the pump when something can be taken after nothing could; must return at once."""
        self._fds = dict(fds)
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._cutting = threading.Lock()  # taken before the other; cutting lines must not hold up the pump
        self._lines = Lines()
        self._pending: deque[tuple[str, bytes]] = deque()
        self._pending_bytes = 0
        self._left_out_bytes = 0
        self._tail: deque[tuple[str, bytes]] = deque()
        self._tail_bytes = 0
        for fd in fds.values():
            os.set_blocking(fd, False)

    def streams(self) -> dict[str, int]:
        """The open pipes by stream."""
        with self._lock:
            return dict(self._fds)

    def read(self, stream: str) -> bool:
        """Read once, without waiting; False when the stream has ended."""
        with self._lock:
            before = self._pending_bytes
            more = self._read(stream, _READ_BYTES) is not None
            fresh = self._pending_bytes > 0 and before == 0
        if fresh and self.on_output is not None:
            self.on_output()
        return more

    def drain(self) -> None:
        """Read what is in the pipes now: everything that the child printed before something else was seen of it."""
        with self._lock:
            for stream, fd in list(self._fds.items()):
                left = _available(fd)
                while left > 0:
                    count = self._read(stream, left)
                    if not count:
                        break
                    left -= count

    def take(self, *, final: bool = False) -> list[OutputLine]:
        """The lines completed since the last call; with ``final`` also an unfinished last line."""
        with self._cutting:
            with self._lock:
                pending, self._pending = self._pending, deque()
                left_out, self._left_out_bytes = self._left_out_bytes, 0
                self._pending_bytes = 0
            lines: list[OutputLine] = []
            if left_out:
                lines += [*self._lines.flush(), OutputLine(NOTE, f"[… {left_out} bytes left out …]")]
            for stream, data in pending:
                lines += self._lines.feed(stream, data)
            return lines + self._lines.flush() if final else lines

    def last_lines(self, count: int = 20) -> list[str]:
        """The last lines printed since :meth:`forget`, taken or not."""
        cutter = Lines()
        with self._lock:
            tail = list(self._tail)
        lines = [line for stream, data in tail for line in cutter.feed(stream, data)] + cutter.flush()
        return [line.text for line in lines[-count:]]

    def forget(self) -> None:
        """Drop everything printed so far: what comes next belongs to somebody else."""
        self.drain()
        with self._cutting, self._lock:
            self._pending.clear()
            self._tail.clear()
            self._pending_bytes = self._tail_bytes = self._left_out_bytes = 0
            self._lines = Lines()

    def close(self) -> None:
        """Close the pipes. What was read can still be taken."""
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def _read(self, stream: str, size: int) -> int | None:
        """Bytes read: 0 when there are none now, None when the stream has ended. The lock is held."""
        fd = self._fds.get(stream)
        if fd is None:
            return None
        try:
            data = os.read(fd, min(size, _READ_BYTES))
        except BlockingIOError:
            return 0
        if not data:
            return None
        self._keep(stream, data)
        return len(data)

    def _keep(self, stream: str, data: bytes) -> None:
        self._pending_bytes += _append(self._pending, stream, data)
        while self._pending_bytes > self._limit and len(self._pending) > 1:
            gone = len(self._pending.popleft()[1])
            self._pending_bytes -= gone
            self._left_out_bytes += gone
        self._tail_bytes += _append(self._tail, stream, data[-TAIL_BYTES:])
        while self._tail_bytes > TAIL_BYTES and len(self._tail) > 1:
            self._tail_bytes -= len(self._tail.popleft()[1])


def _append(chunks: deque[tuple[str, bytes]], stream: str, data: bytes) -> int:
    """Append, joining small pieces, so that a child that prints single bytes costs no more than another."""
    if chunks and chunks[-1][0] == stream and len(chunks[-1][1]) < _MERGE_BELOW_BYTES:
        chunks[-1] = (stream, chunks[-1][1] + data)
    else:
        chunks.append((stream, data))
    return len(data)


def _available(fd: int) -> int:
    size: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    return size


class Pump:
    """The thread that reads the pipes of all children of a worker."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._outputs: dict[int, tuple[Output, str]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = os.eventfd(0)
        self._epoll.register(self._stop, select.EPOLLIN)

    def add(self, output: Output) -> None:
        """Drain this output from now on."""
        with self._lock:
            for stream, fd in output.streams().items():
                self._outputs[fd] = (output, stream)
                self._epoll.register(fd, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="soma-output", daemon=True)
                self._thread.start()

    def remove(self, output: Output) -> None:
        """Read what is left in the pipes and close them."""
        output.drain()
        with self._lock:
            for fd in output.streams().values():
                if self._outputs.pop(fd, None) is not None:
                    self._epoll.unregister(fd)
            output.close()

    def close(self) -> None:
        """End the thread. Outputs that were not removed are drained no more."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join()
        self._epoll.close()
        os.close(self._stop)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._stop:
                    return
                entry = self._outputs.get(fd)
                if entry is not None and not entry[0].read(entry[1]):
                    self._ended(fd, entry[0])

    def _ended(self, fd: int, output: Output) -> None:
        with self._lock:
            entry = self._outputs.get(fd)
            if entry is not None and entry[0] is output:
                del self._outputs[fd]
                self._epoll.unregister(fd)
