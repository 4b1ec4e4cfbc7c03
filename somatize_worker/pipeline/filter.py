"""The class that filters may derive from. It is a convenience: any object with the same methods is a filter too."""

from __future__ import annotations

from typing import Any

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.steps import Operators


class _Kind:
    """``_kind`` of a class that does not state one: trainable if ``fit`` is its own."""

    def __get__(self, obj: object, owner: type[Filter]) -> str:
        return "stateless" if owner.fit is Filter.fit else "trainable"


class Filter(Operators):
    """One step of a pipeline: learns a state from data, and turns an input into an output.

    A filter itself does not change: what it learns is the state, which the worker keeps and gives back.

    Example:
        >>> class Scaler(Filter):
        ...     def fit(self, x, y=None):
        ...         return {"mean": x.mean(axis=0), "std": x.std(axis=0)}
        ...     def forward(self, x, state):
        ...         return (x - state["mean"]) / state["std"]
        >>> pipeline = Scaler() >> Model().named("model").on("gpu")

    Class attributes, all optional:
        _kind: ``"trainable"`` or ``"stateless"``; default: trainable if the class defines ``fit``.
        _stream_mode: ``"fixed"`` (each chunk of a stream on its own), ``"evolving"`` (the state moves with each
            chunk) or ``"barrier"`` (collects all chunks, runs once at the end).
        _cacheable: True keeps outputs and states in the content-addressed cache, False never does (say, the filter
            is random), None leaves it to the plan.
        _differentiable: whether gradients can flow through ``forward``.
        requirements: what must be installed where it runs, as in ``requirements.txt``.

    A filter may also have ``partial_fit(x, y, state) -> state``: with a batch size, it is then shown one batch after
    the other (``state`` is None for the first), after ``prepare(x, y)``, if it has that, has been shown all of it.
    """

    _kind: str = _Kind()  # type: ignore[assignment]  # a class or an object may put plain text in its place
    _stream_mode: str = "fixed"
    _cacheable: bool | None = None
    _differentiable: bool = False
    requirements: list[str] | tuple[str, ...] = ()

    def fit(self, x: Any, y: Any = None) -> Any:
        """Learn from data; never changes the filter.

        Args:
            x: what comes out of the step before, usually an array ``(n_samples, ...)``.
            y: labels or targets ``(n_samples, ...)``, or None.

        Returns:
            The state: an array, numbers, text, lists and mappings of them, or any object that pickles.
        """
        return None

    def forward(self, x: Any, state: Any) -> Any:
        """The output for an input.

        Args:
            x: what comes out of the step before; after a fork, a mapping from node id to output.
            state: what ``fit`` returned, or None.

        Returns:
            An array, numbers, text, lists and mappings of them, bytes or None. Between steps in one process, anything.
        """
        raise InvalidPipeline(f"{type(self).__name__} has no forward method: def forward(self, x, state): ...")

    forward.is_missing = True  # type: ignore[attr-defined]  # by this the pipeline finds out before anything runs

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r:.40}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({shown})"
