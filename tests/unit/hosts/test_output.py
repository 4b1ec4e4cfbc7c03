"""Cutting printed bytes into lines, and keeping what is printed in bounded memory."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker.hosts.output import LINE_LIMIT_BYTES, Lines, Output, OutputLine


def texts(lines: list[OutputLine]) -> list[str]:
    return [line.text for line in lines]


def test_lines_come_when_they_are_complete() -> None:
    lines = Lines()
    assert lines.feed("stdout", b"one\ntw") == [OutputLine("stdout", "one")]
    assert lines.feed("stderr", b"err") == []
    assert lines.feed("stdout", b"o\n\n") == [OutputLine("stdout", "two"), OutputLine("stdout", "")]
    assert lines.flush() == [OutputLine("stderr", "err")]
    assert lines.flush() == []


def test_carriage_returns_are_shown_as_a_terminal_would() -> None:
    lines = Lines()
    assert texts(lines.feed("stderr", b"windows\r\n 10%\r 50%\r100%\n 10%\r 50%\r\n")) == ["windows", "100%", " 50%"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert texts(Lines().feed("stdout", b"a\xff\xfeb\n")) == ["a\ufffd\ufffdb"]


def test_long_lines_come_in_parts_that_split_no_character() -> None:
    text = "é…😀" * LINE_LIMIT_BYTES
    lines = Lines()
    parts = texts(lines.feed("stdout", text.encode() + b"\n"))
    assert "".join(parts) == text
    assert all(len(part.encode()) <= LINE_LIMIT_BYTES for part in parts)
    unfinished = texts(lines.feed("stdout", text.encode()))
    assert len(unfinished) > 1
    assert "".join([*unfinished, *texts(lines.flush())]) == text


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n")).filter(bool),
    st.lists(st.integers(1, 7), min_size=1),
)
def test_how_the_bytes_are_cut_makes_no_difference(text: str, sizes: list[int]) -> None:
    data = (text + "\n").encode() * 3
    lines = Lines()
    seen: list[str] = []
    position, turn = 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        seen += texts(lines.feed("stdout", data[position : position + size]))
        position, turn = position + size, turn + 1
    assert seen == [text] * 3


@pytest.fixture
def printing():
    """An output that keeps 100 kB, and the writing ends of its pipes."""
    reading, writing = os.pipe()
    reading_err, writing_err = os.pipe()
    output = Output({"stdout": reading, "stderr": reading_err}, 100_000)
    yield output, writing, writing_err
    output.close()
    os.close(writing)
    os.close(writing_err)


def test_draining_takes_what_is_there_and_does_not_wait(printing) -> None:
    output, writing, writing_err = printing
    output.drain()
    assert output.take() == []
    os.write(writing, b"a\nb")
    os.write(writing_err, b"c\n")
    output.drain()
    assert output.take() == [OutputLine("stdout", "a"), OutputLine("stderr", "c")]
    assert output.take(final=True) == [OutputLine("stdout", "b")]


def test_the_oldest_is_left_out_with_a_note(printing) -> None:
    output, writing, _ = printing
    os.write(writing, b"not complete before")
    output.drain()
    assert output.take() == []
    line = b"x" * 99 + b"\n"
    for _ in range(50):
        os.write(writing, line * 100)
        output.drain()
    lines = output.take()
    assert lines[0] == OutputLine("stdout", "not complete before")
    assert lines[1].stream == "note"
    kept = sum(len(line.text) + 1 for line in lines[2:])
    assert lines[1].text == f"[… {50 * 10_000 - kept} bytes left out …]"
    assert 80_000 < kept <= 100_000
    assert output.take() == []


def test_the_last_lines_stay_known_until_forgotten(printing) -> None:
    output, writing, writing_err = printing
    for number in range(30):
        os.write(writing, f"line {number}\n".encode())
    os.write(writing_err, b"no end")
    output.drain()
    output.take()
    assert output.last_lines(3) == ["line 28", "line 29", "no end"]
    output.forget()
    assert output.last_lines() == []
    os.write(writing, b"next\n")
    output.drain()
    assert output.last_lines() == ["next"]


def test_single_bytes_cost_no_more_than_others(printing) -> None:
    output, writing, _ = printing
    for _ in range(10_000):
        os.write(writing, b"x")
        output.drain()
    assert len(output._pending) < 30
    assert len(output._tail) < 30
    assert "".join(texts(output.take(final=True))) == "x" * 10_000
