"""What a job prints: capped, with head and tail kept, and read for progress and metrics."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker.hosts.output import Lines, OutputLine
from somatize_worker.jobs.printed import Live, Reader, Step, Transcript, parse_object, step_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def out(text: str) -> OutputLine:
    return OutputLine("stdout", text)


def reader() -> tuple[Reader, list[Step], Clock]:
    steps: list[Step] = []
    clock = Clock()
    return Reader(steps.append, clock), steps, clock


# ── the transcript ───────────────────────────────────────────────────────────────────────────────────────────────


def test_short_output_is_kept_whole() -> None:
    transcript = Transcript(1000)
    for line in ("a", "", "ü"):
        transcript.add(line)
    assert transcript.text() == "a\n\nü\n"


def test_long_output_keeps_head_and_tail_and_says_what_is_gone() -> None:
    transcript = Transcript(1000)
    for number in range(1000):
        transcript.add(f"line {number:03d}")
    lines = transcript.text().splitlines()
    assert lines[0] == "line 000"
    assert lines[-1] == "line 999"
    (note,) = [line for line in lines if "left out" in line]
    kept = [line for line in lines if line != note]
    assert note == f"[… {1000 - len(kept)} lines, {(1000 - len(kept)) * 9} bytes left out …]"
    assert sum(len(line) + 1 for line in kept) <= 1000


@given(st.lists(st.text(max_size=50)), st.integers(0, 300))
def test_a_transcript_never_exceeds_its_limit(lines: list[str], limit: int) -> None:
    transcript = Transcript(limit)
    for line in lines:
        transcript.add(line)
    text = transcript.text()
    note_bytes = len("[… 99999 lines, 99999999 bytes left out …]\n".encode())
    assert len(text.encode("utf-8", "surrogatepass")) <= limit + note_bytes


def test_live_output_comes_at_once_while_it_is_little() -> None:
    shown: list[list[str]] = []
    live = Live(shown.append, Clock())
    live.add([])
    live.add(["a", "b"])
    live.add(["c"])
    assert shown == [["a", "b"], ["c"]]
    live.end()
    assert len(shown) == 2


def test_live_output_is_bounded_by_time_and_the_last_line_arrives() -> None:
    shown: list[str] = []
    clock = Clock()
    live = Live(shown.extend, clock)
    for number in range(20_000):  # 20 seconds of 10 MB/s
        clock.now += 0.001
        live.add([f"{number} ".ljust(999, "x")] * 10)
    live.add(["the end"])
    live.end()
    assert shown[0].startswith("0 ")
    assert shown[-1] == "the end"
    assert sum(len(line) + 1 for line in shown) < 23 << 20
    assert any("left out" in line for line in shown)


def test_live_output_that_was_held_back_is_shown_when_there_is_room_again() -> None:
    shown: list[str] = []
    clock = Clock()
    live = Live(shown.extend, clock)
    live.add(["x" * 100] * 10_000)
    live.add(["y" * 100] * 1_000)
    live.add(["later"])
    assert shown[-1] != "later"
    clock.now += 1
    live.add([])
    assert shown[-1] == "later"


# ── progress and metrics ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text, step",
    [
        ('{"step":3,"total":10,"metrics":{"loss":0.1}}', Step(3, 10, {"loss": 0.1})),
        (' {"step": 3} ', Step(3, 0, {})),
        ('{"step":0,"total":0,"metrics":[1]}', Step(0, 0, [1])),
        (
            '{"step":1,"metrics":{"loss":NaN,"big":Infinity,"huge":1e999}}',
            Step(1, 0, {"loss": None, "big": None, "huge": None}),
        ),
        ('{"step":1,"metrics":{"whole":"\\ud83d\\ude42","half":"\\ud800"}}', Step(1, 0, {"whole": "🙂", "half": "?"})),
        ('{"step":1,"metrics":' + "[" * 149 + "]" * 149 + "}", Step(1, 0, eval("[" * 149 + "]" * 149))),
    ],
)
def test_progress_lines(text: str, step: Step) -> None:
    value = parse_object(text)
    assert value is not None
    assert step_of(value) == step


@pytest.mark.parametrize(
    "text",
    [
        "step 3 of 10",
        "{}",
        '{"step":3,"accuracy":0.9}',
        '{"step":"3"}',
        '{"step":true}',
        '{"step":-1}',
        '{"step":1.5}',
        '{"step":4294967296}',
        '{"step":1,"total":null}',
        '["step"]',
        '{"step":3',
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"step":1,"metrics":' + "[" * 150 + "]" * 150 + "}",
    ],
)
def test_lines_that_are_no_progress(text: str) -> None:
    value = parse_object(text)
    assert value is None or step_of(value) is None


def test_metrics_are_the_last_object_printed() -> None:
    read, steps, _ = reader()
    read.read([out('{"accuracy":0.8}'), out("text"), out('{"accuracy":0.9}'), out('{"step":1}'), out("bye")])
    assert read.metrics == {"accuracy": 0.9}
    assert steps == [Step(1, 0, {})]


def test_without_another_object_metrics_are_those_of_the_last_progress() -> None:
    read, _, _ = reader()
    assert read.metrics is None
    read.read([out('{"step":1,"metrics":{"loss":2.0}}'), out('{"step":2,"metrics":{"loss":1.0}}'), out('{"step":3}')])
    assert read.metrics == {"loss": 1.0}


def test_only_standard_output_counts() -> None:
    read, steps, _ = reader()
    read.read([OutputLine("stderr", '{"step":1}'), OutputLine("note", '{"accuracy":1}')])
    assert (steps, read.metrics) == ([], None)


def test_an_object_on_a_very_long_line_is_put_together_again() -> None:
    value = {"history": [{"epoch": number, "name": "größe"} for number in range(5_000)]}
    data = json.dumps(value, ensure_ascii=False).encode() + b"\nafter\n"
    cutter = Lines()
    lines = [line for start in range(0, len(data), 1000) for line in cutter.feed("stdout", data[start : start + 1000])]
    assert len(lines) > 10
    read, _, _ = reader()
    read.read(lines)
    assert read.metrics == value


def test_a_flood_of_progress_is_thinned_but_the_last_arrives() -> None:
    read, steps, clock = reader()
    read.read([out(f'{{"step":{number}}}') for number in range(10_000)])
    assert 100 < len(steps) < 1_000
    read.end()
    assert steps[-1].step == 9_999
    read.report(Step(1, 2))
    count = len(steps)
    read.tick()
    assert len(steps) == count
    clock.now += 1
    read.tick()
    assert steps[-1] == Step(1, 2)
    read.tick()
    assert len(steps) == count + 1


def test_a_slow_job_sees_every_step_go_out_at_once() -> None:
    read, steps, clock = reader()
    for number in range(1_000):
        clock.now += 0.05
        read.read([out(f'{{"step":{number}}}')])
        assert steps[-1].step == number
