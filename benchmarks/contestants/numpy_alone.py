"""The floor of the tensor's job: numpy in one process, without any machinery around it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.work import TENSOR, Jobs, Work, double
from somatize_worker.settings import default_folder


@contextmanager
def play(work: Work, through_files: bool) -> Iterator[Jobs]:
    """Copied in, doubled, copied out, summed.

    The copies are arrays in memory, or files in shared memory, mapped: what data goes through that two processes share.
    """

    def in_memory() -> None:
        work.check_tensor(double(work.tensor.copy()).copy())

    def in_files() -> None:
        np.save(folder / "in.npy", work.tensor)
        np.save(folder / "out.npy", double(np.load(folder / "in.npy", mmap_mode="r")))
        work.check_tensor(np.load(folder / "out.npy", mmap_mode="r"))
        for path in folder.iterdir():  # a result has a file of its own each time
            path.unlink()

    base = default_folder("benchmark").parent
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name)
        yield {TENSOR: in_files if through_files else in_memory}
