"""The results as tables: in the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.comparison import OURS, Result
from benchmarks.rounds import Score
from benchmarks.work import Work

_HEAD = ["", "median", "best", "rounds", "median to ours", "best to ours"]
_VERDICTS = ["job", "to reach", "median", "best", ""]

_INTRODUCTION = """\
# Side by side

Written by `python -m benchmarks`. One run, one machine, all contestants at the same time and in turns; what holds
elsewhere is for another run to say. Best is the fastest round; ratios above 1 mean that ours was faster."""


def show(results: Sequence[Result], console: Console) -> None:
    """Print the tables."""
    for result in results:
        table = Table(*_HEAD, title=escape(_title(result)), title_justify="left", caption=result.comparison.note)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in _rows(result):
            table.add_row(*map(escape, row), style="bold" if row[0] == OURS else None)
        console.print(table)
    verdicts = Table(*_VERDICTS, title="targets", title_justify="left")
    for row in _verdicts(results):
        verdicts.add_row(*row, style="green" if row[-1] == "met" else "red")
    console.print(verdicts)


def write(results: Sequence[Result], heading: Sequence[str], path: Path) -> None:
    """Write the tables as Markdown; what stands below the line ``<!-- by hand -->`` in the file stays."""
    parts = [_INTRODUCTION, "\n".join(f"- {line}" for line in heading), "## Targets"]
    parts.append(_markdown(_VERDICTS, list(_verdicts(results))))
    for result in results:
        parts += [f"## {_title(result)}", _markdown(_HEAD, list(_rows(result)))]
        if result.comparison.note:
            parts.append(result.comparison.note)
    _, mark, kept = (path.read_text() if path.exists() else "").partition("<!-- by hand -->")
    path.write_text("\n\n".join(parts) + "\n" + (f"\n{mark}{kept}" if mark else ""))


def _title(result: Result) -> str:
    title = result.comparison.title
    return f"{title[0].upper()}{title[1:]} ({result.comparison.unit})"


def _rows(result: Result) -> Iterator[list[str]]:
    unit = result.comparison.unit
    ours = next(score for score in result.scores if score.name == OURS)
    for score in result.scores:
        if score.failure or not score.values:
            yield [score.name, f"failed: {score.failure}", "", str(len(score.values)), "", ""]
            continue
        ratios = ["", ""]
        if score is not ours and ours.values:
            ratios = [f"{_ratio(score.median / ours.median)} ×", f"{_ratio(score.best / ours.best)} ×"]
        yield [score.name, _in(unit, score.median), _in(unit, score.best), str(len(score.values)), *ratios]


def _verdicts(results: Sequence[Result]) -> Iterator[list[str]]:
    for result in results:
        comparison = result.comparison
        scores = {score.name: score for score in result.scores}
        ours = scores[OURS]
        if comparison.limit is not None and ours.values:
            measured = max(ours.values) / 1e6
            met = "met" if measured < comparison.limit else "missed"
            below = f"below {comparison.limit:g} {comparison.unit}"
            yield [comparison.title, below, f"{measured:.1f} (largest)", "", met]
        for target in comparison.targets:
            yield _verdict(result, target.factor, ours, scores[target.other])


def _verdict(result: Result, factor: float, ours: Score, other: Score) -> list[str]:
    title = result.comparison.title
    if factor > 0.5:
        wanted, fraction = f"at most {factor:g} × {other.name}", True
    else:
        wanted, fraction = f"{1 / factor:g} × faster than {other.name}", False
    if not ours.values or not other.values:
        return [title, wanted, "not measured", "", "missed"]
    ratios = [ours.median / other.median, ours.best / other.best]
    shown = [f"{_ratio(ratio if fraction else 1 / ratio)} ×" for ratio in ratios]
    return [title, wanted, *shown, "met" if ratios[0] <= factor else "missed"]


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _in(unit: str, value: float) -> str:
    if unit == "ms":
        return f"{value * 1e3:,.2f}"
    if unit == "items/s":
        return f"{Work().items_count / value:,.0f}"
    return f"{value / 1e6:.1f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
