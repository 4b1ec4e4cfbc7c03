"""Rounds in turn: whatever else the machine does hits all contestants alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.player import Failed, Player


@dataclass(frozen=True)
class Effort:
    """How much each contestant plays: turns until it had ``turns`` of them, or ``seconds`` and two."""

    turns: int
    seconds: float
    burst: int = 1
    warm: int = 1
    """Rounds in a turn, and turns that do not count."""

    def quick(self) -> Effort:
        """About a tenth of it."""
        return Effort(max(1, self.turns // 10), self.seconds / 10, self.burst, min(self.warm, 1))


@dataclass
class Score:
    """One contestant's rounds of one job."""

    name: str
    values: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def best(self) -> float:
        return min(self.values)


def take_turns(
    players: Sequence[Player], jobs: Mapping[str, str], effort: Effort, tell: Callable[[str], None]
) -> list[Score]:
    """Each player's score of its job; ``jobs`` says by player's name which it is.

    A player that fails is out, with the reason in its score.
    """
    scores = {player.name: Score(player.name) for player in players}
    spent = dict.fromkeys(scores, 0.0)
    active = list(players)
    for turn in range(effort.warm + effort.turns):
        for player in list(active):
            score = scores[player.name]
            tell(f"{jobs[player.name]}, turn {turn + 1}: {player.name}")
            started = time.monotonic()
            try:
                values = player.play(jobs[player.name], effort.burst)
            except Failed as failure:
                score.failure = str(failure)
                active.remove(player)
                continue
            if turn >= effort.warm:
                score.values += values
                spent[player.name] += time.monotonic() - started
                if spent[player.name] > effort.seconds and turn > effort.warm:
                    active.remove(player)
    return list(scores.values())
