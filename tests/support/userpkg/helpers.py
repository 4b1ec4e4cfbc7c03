"""Helpers that the filters refer to."""

FACTOR = 3


def scale(x):
    """Uses a constant of its own module."""
    return x * FACTOR


def unused(x):
    """Nobody calls this."""
    return x
