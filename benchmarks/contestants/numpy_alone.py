"""The floor of the tensor's job: the same copies, in one process, by numpy alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.work import TENSOR, Jobs, Work, double


@contextmanager
def play(work: Work) -> Iterator[Jobs]:
    """Copied in, doubled, copied out, summed."""

    def tensor() -> None:
        work.check_tensor(double(work.tensor.copy()).copy())

    yield {TENSOR: tensor}
