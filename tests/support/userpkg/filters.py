# mypy: ignore-errors
"""Filters as a user would write them: helpers imported above, below, and as modules."""

import numpy as np
from userpkg import helpers
from userpkg.helpers import scale

from somatize_worker.pipeline.filter import Filter


class Mean:
    """A state of a class of the user's own."""

    def __init__(self, value):
        self.value = value


class Center(Filter):
    """Trainable; the state is an object."""

    def fit(self, x, y=None):
        return Mean(np.mean(x, axis=0))

    def forward(self, x, state):
        return x - state.value


class Scale(Filter):
    """Calls a helper imported by name."""

    def __init__(self, times=1):
        self.times = times

    def forward(self, x, state):
        return scale(x) * self.times


class ScaleByModule(Filter):
    """Reaches the helper through its module."""

    def forward(self, x, state):
        return helpers.scale(x)


class Shift(Filter):
    """Imports when it runs, in three ways."""

    def forward(self, x, state):
        import userpkg.late
        from userpkg.late import shift

        from . import late  # noqa: TID252

        assert userpkg.late.OFFSET == late.OFFSET
        return shift(x)
