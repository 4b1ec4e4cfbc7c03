"""Frames over a socket pair, both ends in this process."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from somatize_worker.errors import HostError
from somatize_worker.hosts.frames import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = (Channel(end, max_frame_bytes=64 << 20) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


def test_frames_arrive_as_they_were_sent(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    frames: list[list[Any]] = [
        ["ready", {"pid": 1}],
        ["run", {"spec": b"\0" * 100, "journal": {}}],
        ["stop"],
        ["big", "x" * 20_000],
    ]
    for frame in frames:
        left.send(frame)
    assert [right.receive(5) for _ in frames] == frames
    assert right.receive(0) is None
    assert right.receive_ready() is None


def test_a_large_frame_passes_in_pieces(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    array = np.arange(4_000_000.0)
    sender = threading.Thread(target=left.send, args=(["done", {"output": array}],))
    sender.start()
    frame = right.receive(30)
    sender.join()
    assert frame is not None
    np.testing.assert_array_equal(frame[1]["output"], array)


def test_a_frame_that_comes_byte_by_byte_is_waited_for_and_not_lost() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    whole = struct.pack(">I", 8) + b"\x92\xa4node\xa1a"
    for byte in whole[:-1]:
        theirs.send(bytes([byte]))
        assert channel.receive(0) is None
    theirs.send(whole[-1:])
    assert channel.receive(0) == ["node", "a"]
    theirs.close()
    channel.close()


def test_frames_of_many_threads_do_not_interleave(ends: tuple[Channel, Channel]) -> None:
    left, right = ends

    def send(number: int) -> None:
        for i in range(50):
            left.send(["from", number, i, bytes([number]) * (i * 997)])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    seen: dict[int, list[int]] = {}
    for _ in range(8 * 50):
        frame = right.receive(30)
        assert frame is not None
        _, number, i, data = frame
        assert data == bytes([number]) * (i * 997)
        seen.setdefault(number, []).append(i)
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(50)) for numbers in seen.values())


def test_the_end_is_an_end_of_file_after_what_was_sent(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send(["done"])
    left.close()
    left.close()
    assert right.receive(5) == ["done"]
    with pytest.raises(EOFError, match="gone"):
        right.receive(5)
    with pytest.raises(BrokenPipeError):
        right.send(["answer"])


def test_an_end_within_a_frame_says_so() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall(struct.pack(">I", 100) + b"half")
    theirs.close()
    with pytest.raises(EOFError, match="in the middle of a frame"):
        channel.receive(5)
    channel.close()


def test_an_end_with_unread_frames_is_an_end_of_file(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    right.send(["never read"])
    left.close()
    with pytest.raises(EOFError):
        right.receive(5)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",  # larger than any frame
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",  # not packed
        struct.pack(">I", 1) + b"\x90",  # an empty list
        struct.pack(">I", 2) + b"\x91\x01",  # no kind
        struct.pack(">I", 3) + b"\x91\xa1a"[:2] + b"\xa5",  # cut short
        struct.pack(">I", 0),
    ],
)
def test_noise_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall(data)
    with pytest.raises(HostError):
        channel.receive(5)
    theirs.close()
    channel.close()


def test_a_frame_over_the_limit_is_not_sent_and_does_no_harm(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    with pytest.raises(HostError, match="larger than the limit"):
        left.send(["run", b"x" * (65 << 20)])
    with pytest.raises(TypeError):
        left.send(["run", object()])
    left.send(["run"])
    assert right.receive(5) == ["run"]


def test_who_takes_nothing_is_given_up_and_the_stream_is_broken(ends: tuple[Channel, Channel]) -> None:
    left, _right = ends
    with pytest.raises(TimeoutError):
        left.send(["run", b"x" * (10 << 20)], stall_s=0.01)
    with pytest.raises(BrokenPipeError, match="only in part"):
        left.send(["run"])


def test_an_inherited_socket_is_not_inherited_further() -> None:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    inherited = Channel.from_fd(theirs.detach())
    other = Channel(ours)
    inherited.send(["ready"])
    assert other.receive(5) == ["ready"]
    assert not os.get_inheritable(inherited.fileno())
    inherited.close()
    other.close()
