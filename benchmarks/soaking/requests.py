"""The plans of a soak, each with what must come of it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from somatize_worker import Coordinator, Filter
from somatize_worker.pipeline import CompiledPipeline

# Whatever is expected to succeed may be hit by the death of its host, from outside, any number of times.
_DEATHS_ENDURED: Final = 100

WEIGHTS: Final[Mapping[str, int]] = {
    "tiny": 800,
    "slow chain": 40,
    "large values": 30,
    "remote children": 40,
    "fit": 20,
    "dies once": 20,
    "dies": 10,
    "raises": 10,
    "cancelled": 20,
    "sent many times": 10,
}


@dataclass(frozen=True)
class Request:
    """One plan. ``expected`` says whether its result is right; ``error`` is a part of the failure's type that must come
    instead, ``may_be_cancelled`` that it may also end as cancelled."""

    kind: str
    plan_id: str
    pipeline: CompiledPipeline
    x: Any
    mode: str = "forward"
    expected: Callable[[Any], bool] = bool
    error: str = ""
    may_be_cancelled: bool = False
    cancel_after_s: float | None = None
    duplicates: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: {"retries": _DEATHS_ENDURED, "retry_delay": 0.01})


class _Sleeps(Filter):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def forward(self, x: Any, state: Any = None) -> Any:
        time.sleep(self.seconds)
        return x + 1


class _Learns(Filter):
    def fit(self, x: Any, y: Any = None) -> Any:
        return {"mean": float(np.mean(x))}

    def forward(self, x: Any, state: Any) -> Any:
        return x - state["mean"]


class _DiesOnce(Filter):
    """Ends its process the first time; the input says where it notes that it has."""

    def forward(self, x: Any, state: Any = None) -> Any:
        try:
            os.close(os.open(x["file"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return x["number"]
        os._exit(9)


def _abort(x: Any) -> Any:
    os.abort()


def _raise(x: Any) -> Any:
    raise ValueError(f"this input is not liked: {x}")


def requests(c: Coordinator, seed: int, folder: Path) -> Iterator[Request]:
    """Endlessly, the same ones for the same seed. ``folder`` is for notes of the plans'."""
    rng = random.Random(seed)
    make = _Maker(c, rng, folder)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    number = 0
    while True:
        number += 1
        yield make.request(rng.choices(kinds, weights)[0], number)


class _Maker:
    def __init__(self, c: Coordinator, rng: random.Random, folder: Path) -> None:
        self._rng = rng
        self._folder = folder
        self._prefix = f"soak-{rng.randrange(1 << 32):08x}"
        add = c.compile(lambda x: x + 1)
        self._pipelines = {
            "tiny": add,
            "slow chain": c.compile(_Sleeps(0.02) >> _Sleeps(0.1) >> _Sleeps(0.05)),
            "large values": c.compile(lambda x: x * 2),
            "remote children": c.compile(_Sleeps(0.0) >> _Sleeps(0.01).on("gpu") >> _Sleeps(0.0)),
            "fit": c.compile(_Learns()),
            "dies once": c.compile(_DiesOnce()),
            "dies": c.compile(_abort),
            "raises": c.compile(_raise),
            "cancelled": c.compile(_Sleeps(0.3)),
            "sent many times": add,
        }

    def request(self, kind: str, number: int) -> Request:
        plan_id = f"{self._prefix}-{number}"
        rest = getattr(self, f"_{kind.replace(' ', '_')}", self._adds)(number)
        return Request(kind=kind, plan_id=plan_id, pipeline=self._pipelines[kind], **rest)

    def _adds(self, number: int) -> dict[str, Any]:
        return {"x": number, "expected": lambda output: output == number + 1}

    def _slow_chain(self, number: int) -> dict[str, Any]:
        return {"x": number, "expected": lambda output: output == number + 3}

    _remote_children = _slow_chain

    def _large_values(self, number: int) -> dict[str, Any]:
        x = np.full(40_000, float(number))
        return {"x": x, "expected": lambda output: output.shape == x.shape and bool((output == 2 * x).all())}

    def _fit(self, number: int) -> dict[str, Any]:
        x = np.arange(10.0) + number
        return {"x": x, "mode": "fit", "expected": lambda output: abs(float(output.sum())) < 1e-6}

    def _dies_once(self, number: int) -> dict[str, Any]:
        x = {"file": str(self._folder / f"died-{number}"), "number": number}
        return {"x": x, "expected": lambda output: output == number}

    def _dies(self, number: int) -> dict[str, Any]:
        return {"x": number, "error": "HostDied", "options": {}}

    def _raises(self, number: int) -> dict[str, Any]:
        return {"x": number, "error": "ValueError"}

    def _cancelled(self, number: int) -> dict[str, Any]:
        return {**self._adds(number), "may_be_cancelled": True, "cancel_after_s": self._rng.uniform(0, 0.5)}

    def _sent_many_times(self, number: int) -> dict[str, Any]:
        return {**self._adds(number), "duplicates": 10}
