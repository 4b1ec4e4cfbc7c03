"""What hosts print: it never holds up the host for good, never grows the worker, and goes to the right plan."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import psutil
import pytest

from somatize_worker.hosts import HostPool, Launch, Nursery, OutputLine
from somatize_worker.hosts.process import Child
from tests.support.hosts import DEADLINE_S, do, python


def start(nursery: Nursery, text: str, limit_bytes: int = 1 << 20) -> Child:
    return nursery.start(Launch(argv=python(text), environ={}, output_limit_bytes=limit_bytes))


@pytest.mark.parametrize("fd", [1, 2])
@pytest.mark.parametrize("megabytes", [1, 50])
def test_megabytes_neither_block_the_host_nor_grow_the_worker(pool: HostPool, fd: int, megabytes: int) -> None:
    host = pool.acquire("a")
    before = psutil.Process().memory_info().rss
    line = b"x" * 99 + b"\n"
    do(host, f"import os\nfor _ in range({megabytes}): os.write({fd}, {line!r} * 10486)\nos.write({fd}, b'the end\\n')")
    host.drain()
    lines = host.take_output()
    assert lines[-1] == "the end"
    if megabytes == 50:
        assert lines[0].startswith("[… ")
        left_out = int(lines[0].split()[1])
        assert left_out + sum(len(text) + 1 for text in lines[1:]) == 50 * 10486 * 100 + 8
    assert sum(map(len, lines)) <= 1 << 20
    assert psutil.Process().memory_info().rss - before < 30 << 20
    pool.release(host, reuse=False)


def test_what_was_printed_before_the_last_frame_belongs_to_that_plan(pool: HostPool) -> None:
    host = pool.acquire("a")
    for round_ in range(200):
        do(host, f"print({round_}); print('no end', {round_}, end='')")
        assert host.take_output(final=True) == [str(round_), f"no end {round_}"]
        pool.release(host, reuse=True)
        host = pool.acquire("a")
    pool.release(host, reuse=False)


def test_what_a_plan_printed_is_not_in_the_certificate_of_the_next(pool: HostPool) -> None:
    host = pool.acquire("a")
    do(host, "print('the first plan', flush=True)")
    pool.release(host, reuse=True)
    host = pool.acquire("a")
    assert do(host, "print('the second plan', flush=True)") is None
    certificate = host.kill("deadline")
    assert certificate["last_lines"] == ["the second plan"]
    pool.release(host, reuse=False)


def test_streams_are_told_apart_and_lines_come_whole(nursery: Nursery) -> None:
    child = start(
        nursery,
        r"""
import os
os.write(1, b"one\ntw")
os.write(2, b"err\n")
os.write(1, b"o\n")
os.write(1, "… ø".encode())
""",
    )
    assert child.wait(30)
    lines = child.take_output(final=True)
    assert [line.text for line in lines if line.stream == "stdout"] == ["one", "two", "… ø"]
    assert [line for line in lines if line.stream == "stderr"] == [OutputLine("stderr", "err")]
    child.close()


def test_output_can_be_taken_after_the_end(nursery: Nursery) -> None:
    child = start(nursery, "print('a' * 10); print('b', end='')")
    assert child.wait(30)
    child.close()
    assert [line.text for line in child.take_output(final=True)] == ["a" * 10, "b"]
    assert child.certificate()["last_lines"] == ["a" * 10, "b"]


def test_whoever_asked_is_told_that_there_is_output(nursery: Nursery) -> None:
    child = start(nursery, "import time\nfor line in range(5): print(line); time.sleep(0.01)\ntime.sleep(1000)")
    told = threading.Event()
    child.output.on_output = told.set
    seen = child.take_output()
    while len(seen) < 5:
        assert told.wait(DEADLINE_S)
        told.clear()
        seen += child.take_output()
    assert [line.text for line in seen] == ["0", "1", "2", "3", "4"]
    child.close()


def test_a_descendant_that_holds_the_pipes_does_not_hold_up_the_end(nursery: Nursery) -> None:
    child = start(nursery, "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(1000)\nprint('done')")
    assert child.wait(30)
    certificate = child.kill()
    assert certificate["exit_code"] == 0
    assert [line.text for line in child.take_output(final=True)] == ["done"]
    child.close()


def test_the_pump_serves_many_at_once(nursery: Nursery) -> None:
    text = "import os\nfor _ in range(100): os.write(1, (b'x' * 999 + b'\\n') * 10)\nprint('end')"
    children = [start(nursery, text, limit_bytes=100_000) for _ in range(8)]
    for child in children:
        assert child.wait(60)
        lines = child.take_output(final=True)
        assert lines[-1].text == "end"
        assert lines[0].stream == "note"
        child.close()


def test_pipes_are_closed_with_the_child(nursery: Nursery) -> None:
    start(nursery, "pass").close()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        start(nursery, "print(1)").close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_pool_with_a_small_limit(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(log_limit_bytes=50_000)
    host = pool.acquire("a")
    do(host, "for i in range(100_000): print('line', i)")
    lines = host.take_output(final=True)
    assert lines[0].startswith("[… ")
    assert lines[-1] == "line 99999"
    assert sum(map(len, lines)) <= 50_000
    pool.release(host, reuse=False)
