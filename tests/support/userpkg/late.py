# mypy: ignore-errors
"""A module that filters import only when they run."""

from userpkg.helpers import FACTOR

OFFSET = 100


def shift(x):
    """Uses its own constant and another module's."""
    return x + OFFSET + FACTOR
