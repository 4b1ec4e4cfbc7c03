"""Who belongs to whom."""

from __future__ import annotations

import os

import pytest

from somatize_worker.hosts import family
from somatize_worker.hosts.family import Process, members, parse_stat
from somatize_worker.hosts.limits import Limits, excess, readable


def process(pid: int, parent: int = 1, group: int = 0, session: int = 0, ended: bool = False) -> Process:
    return Process(pid, parent, group or pid, session or pid, started=pid, resident_bytes=0, ended=ended)


def test_a_line_of_proc_stat_with_an_awkward_name() -> None:
    line = "42 (a ) S 1) (b) S 7 40 39 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 12345 1000000 250 18446744073709551615 1\n"
    assert parse_stat(line) == Process(42, 7, 40, 39, 12345, 250 * os.sysconf("SC_PAGE_SIZE"), ended=False)
    assert parse_stat(line.replace(") S 7", ") Z 7")).ended


def test_our_own_line() -> None:
    own = family.look(os.getpid())
    assert own is not None
    assert (own.pid, own.parent, own.group) == (os.getpid(), os.getppid(), os.getpgrp())
    assert own.resident_bytes > 1 << 20
    assert family.snapshot()[own.pid].started == own.started
    assert family.look(2**22 + 1) is None


def test_members_are_group_session_and_descendants() -> None:
    everyone = [
        process(10),
        process(11, parent=10, group=10, session=10),
        process(12, parent=11, group=12, session=10),  # a group of its own in the session
        process(13, parent=12, group=13, session=13),  # a session of its own, still a descendant
        process(14, parent=1, group=14, session=10),  # lost its parent, stayed in the session
        process(15, parent=14),
        process(16, parent=10, ended=True),
        process(20),
        process(21, parent=20),
        process(1, parent=0),
    ]
    found = members({p.pid: p for p in everyone}, 10)
    assert sorted(p.pid for p in found) == [10, 11, 12, 13, 14, 15]
    assert members({p.pid: p for p in everyone}, 99) == []


def test_members_survive_a_circle_of_reused_numbers() -> None:
    circle = {1: process(1, parent=2), 2: process(2, parent=1)}
    assert {p.pid for p in members(circle, 1)} == {1, 2}


def test_a_process_that_is_not_there_has_nothing() -> None:
    assert family.mark_of(2**22 + 1) is None
    assert family.command(2**22 + 1) == []
    assert family.children(2**22 + 1) == []


@pytest.mark.parametrize(
    ("limits", "processes", "memory", "expected"),
    [
        (Limits(), 10**6, 10**15, None),
        (Limits(memory_bytes=100), 1, 100, None),
        (Limits(memory_bytes=1 << 30), 1, 3 << 29, ("memory limit", "1.5 GiB used, 1 GiB allowed")),
        (Limits(processes=5), 5, 0, None),
        (Limits(processes=5), 6, 0, ("process limit", "6 processes, 5 allowed")),
    ],
)
def test_limits(limits: Limits, processes: int, memory: int, expected: tuple[str, str] | None) -> None:
    assert excess(limits, processes, memory) == expected
    assert limits.any() == (limits != Limits())


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (312 << 20, "312 MiB"), (5 << 40, "5.12e+03 GiB")]
)
def test_readable_sizes(size: int, text: str) -> None:
    assert readable(size) == text
