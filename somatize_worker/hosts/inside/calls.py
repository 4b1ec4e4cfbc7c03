"""How a filter is called: decided once for each filter, from its signatures.

    forward(x)   forward(x, state)
    fit(x)       fit(x, y)
    partial_fit  by the parameters it has: x, y, state

An object without ``forward`` that can be called is a stateless function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final
from weakref import WeakKeyDictionary

from somatize_worker.errors import InvalidPipeline
from somatize_worker.hosts.inside import batches

_TARGET_NAMES: Final = frozenset({"y", "Y", "y_true", "target", "targets", "label", "labels"})
_KINDS: Final = {"trainable": "Trainable", "opaque": "Opaque"}
_NO_STATE: Final = object()


@dataclass(frozen=True)
class Shape:
    """Which arguments a method takes beside ``x``, and whether it can do without the state."""

    y: bool = False
    state: bool = False
    state_optional: bool = False


#: Shapes of plain functions, by role: a signature takes longer to read than a small node to run.
_read: WeakKeyDictionary[FunctionType, dict[tuple[str, bool], Shape]] = WeakKeyDictionary()


class Step:
    """One node's filter, ready to be called with live values."""

    __slots__ = ("_fit", "_fit_shape", "_forward", "_partial", "_partial_shape", "_shape", "_state", "filter", "kind",
                 "load_state", "node_id", "run", "trainable")  # fmt: skip

    def __init__(
        self, node_id: str, loaded: Any, *, trainable: bool = False, load_state: Callable[[], Any] | None = None
    ) -> None:
        """Decide how to call ``loaded``. ``load_state`` gives the state that came with the plan.

        Raises:
            InvalidPipeline: the object is no filter, or a method takes what nobody can give.
        """
        self.node_id = node_id
        self.filter = loaded
        self.load_state = load_state
        self._state: Any = _NO_STATE
        self._forward: Any = None
        self._fit: Callable[..., Any] | None = None
        self._partial: Callable[..., Any] | None = None
        #: ``run(x)``: forward, with the state that the node has now.
        self.run: Callable[[Any], Any]
        if type(loaded) is FunctionType and not trainable:
            self.trainable, self.kind, self.run = False, "Stateless", loaded
            return
        declared = getattr(loaded, "_kind", None)
        self.trainable = bool(trainable or declared == "trainable")
        self.kind = "Trainable" if self.trainable else _KINDS.get(str(declared), "Stateless")
        self._choose_forward(loaded)
        self._choose_fit(loaded)

    def _choose_forward(self, loaded: Any) -> None:
        forward = getattr(loaded, "forward", None)
        if isinstance(loaded, type) and forward is not None:
            raise InvalidPipeline(
                f"node {self.node_id!r}: {loaded.__module__}.{loaded.__qualname__} is a class; make an object of it",
                node_id=self.node_id,
            )
        if forward is None:
            if not callable(loaded):
                raise InvalidPipeline(
                    f"node {self.node_id!r}: {_name(loaded)} is no filter: it has no forward(x) and cannot be called",
                    node_id=self.node_id,
                )
            forward, self._shape = loaded, Shape()
        else:
            self._shape = self._read("forward", forward)
        self._forward = forward
        self.run = self._run_with_state if self._shape.state else forward

    def _choose_fit(self, loaded: Any) -> None:
        if not self.trainable:
            return
        self._fit = getattr(loaded, "fit", None)
        self._partial = getattr(loaded, "partial_fit", None)
        if self._fit is not None:
            self._fit_shape = self._read("fit", self._fit)
        if self._partial is not None:
            self._partial_shape = self._read("partial_fit", self._partial)

    def _read(self, role: str, method: Callable[..., Any]) -> Shape:
        function = getattr(method, "__func__", None)
        if type(function) is not FunctionType:
            return _READERS[role](self.node_id, method, self.trainable)
        known = _read.setdefault(function, {})
        shape = known.get((role, self.trainable))
        if shape is None:
            shape = known[role, self.trainable] = _READERS[role](self.node_id, method, self.trainable)
        return shape

    # ── forward ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run_with_state(self, x: Any) -> Any:
        return self._forward(x, self.state())

    def state(self) -> Any:
        """The live state: what the last fit gave, else what came with the plan, else None for a filter that can do
        without one (it is stateless, or its ``forward`` has a default for it).

        Raises:
            InvalidPipeline: the filter is trainable and has no state.
        """
        if self._state is _NO_STATE:
            if self.load_state is not None:
                self._state = self.load_state()
            elif self.trainable and not self._shape.state_optional:
                raise InvalidPipeline(
                    f"node {self.node_id!r} is trainable and not fitted; fit first, or pass states "
                    "(a fit that returns None leaves nothing to keep)",
                    node_id=self.node_id,
                )
            else:
                self._state = None
        return self._state

    @property
    def unfitted(self) -> bool:
        """Whether it is trainable and runs without any state."""
        return self.trainable and self.load_state is None and (self._state is _NO_STATE or self._state is None)

    def set_state(self, state: Any) -> None:
        """The state that ``forward`` uses from now on."""
        self._state = state

    def forget(self) -> None:
        """The plan is over: let go of filter and state now, not when the collector comes by. Not usable after."""
        self.filter = self._state = self._forward = self._fit = self._partial = self.load_state = None
        del self.run

    def restore(self, load_state: Callable[[], Any]) -> None:
        """The state of an earlier run, loaded when it is needed."""
        self.load_state, self._state = load_state, _NO_STATE

    # ── fit ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fits_in_batches(self) -> bool:
        """Whether it has ``partial_fit``."""
        return self._partial is not None

    @property
    def stream_mode(self) -> str:
        """``fixed``, ``evolving`` or ``barrier``: what happens when data comes in chunks."""
        return str(getattr(self.filter, "_stream_mode", "fixed"))

    @property
    def cacheable(self) -> bool | None:
        """Whether the filter says that its output may be cached; None: it does not say."""
        said = getattr(self.filter, "_cacheable", None)
        return None if said is None else bool(said)

    def learn(self, x: Any) -> Any:
        """One more chunk of a stream for an evolving filter; its new state.

        Raises:
            InvalidPipeline: it has no ``partial_fit``.
        """
        if self._partial is None:
            raise InvalidPipeline(
                f"node {self.node_id!r} is said to evolve with a stream, but {_name(self.filter)} has no partial_fit",
                node_id=self.node_id,
            )
        state = None if self._state is _NO_STATE and self.load_state is None else self.state()
        self._state = self.fit_part(x, None, state)
        return self._state

    def fit(self, x: Any, y: Any, batch_size: int | None) -> Any:
        """Fit; the new state, which ``forward`` uses from now on.

        With ``batch_size``, a filter that has ``partial_fit`` sees each batch in turn.

        Raises:
            InvalidPipeline: it has no fit, or the data cannot be cut into batches.
        """
        if self._partial is not None and (batch_size is not None or self._fit is None):
            state = self._fit_by_batches(x, y, batch_size)
        elif self._fit is not None:
            state = self._fit(x, y) if self._fit_shape.y else self._fit(x)
        else:
            raise InvalidPipeline(
                f"node {self.node_id!r} is said to be trainable, but {_name(self.filter)} has neither fit nor "
                "partial_fit",
                node_id=self.node_id,
            )
        self._state = state
        return state

    def _fit_by_batches(self, x: Any, y: Any, batch_size: int | None) -> Any:
        state = None
        prepare = getattr(self.filter, "prepare", None)
        if prepare is not None:  # a look at all data before the batches, say to learn which classes there are
            prepare(x, y)
        for x_part, y_part in batches.cut(x, y, batch_size) if batch_size is not None else [(x, y)]:
            state = self.fit_part(x_part, y_part, state)
        return state

    def fit_part(self, x: Any, y: Any, state: Any) -> Any:
        """One call of ``partial_fit``; the new state."""
        partial = self._partial
        assert partial is not None
        extra: dict[str, Any] = {}
        if self._partial_shape.y:
            extra["y"] = y
        if self._partial_shape.state:
            extra["state"] = state
        if extra and not _by_keyword(partial, extra):
            return partial(x, *extra.values())
        return partial(x, **extra)


def _name(loaded: Any) -> str:
    return f"an object of {type(loaded).__module__}.{type(loaded).__qualname__}"


def _parameters(node_id: str, method: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """The parameters that can be given by position, and whether there may be any number."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):  # a C function without a signature: the plainest call is the best guess
        return [], False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name != "state"]
    if needed:
        raise InvalidPipeline(
            f"node {node_id!r}: {method.__name__} needs the keyword {needed[0]!r}, which nobody gives; "
            "give it a default",
            node_id=node_id,
        )
    if not places and not many:
        raise InvalidPipeline(f"node {node_id!r}: {method.__name__} takes no input", node_id=node_id)
    return places, many


def _refuse_more(node_id: str, method: Callable[..., Any], places: list[inspect.Parameter], allowed: int) -> None:
    needed = [p.name for p in places if p.default is p.empty]
    if len(needed) > allowed:
        raise InvalidPipeline(
            f"node {node_id!r}: {method.__name__}({', '.join(needed)}) takes more than a filter is given; see the "
            "filter protocol: fit(x, y) -> state, forward(x, state) -> output",
            node_id=node_id,
        )


def _forward_shape(node_id: str, forward: Callable[..., Any], trainable: bool) -> Shape:
    places, many = _parameters(node_id, forward)
    _refuse_more(node_id, forward, places, 2)
    if not places:
        return Shape(state=many and trainable)
    for second in places[1:2]:
        needed = second.default is second.empty
        if second.name == "state" or needed:
            return Shape(state=True, state_optional=not needed)
    return Shape()


def _fit_shape(node_id: str, fit: Callable[..., Any], trainable: bool) -> Shape:
    places, many = _parameters(node_id, fit)
    _refuse_more(node_id, fit, places, 2)
    second = places[1:2]
    takes = any(p.name in _TARGET_NAMES or p.default is p.empty or p.default is None for p in second)
    return Shape(y=takes or (many and len(places) < 2))


def _partial_shape(node_id: str, partial: Callable[..., Any], trainable: bool) -> Shape:
    places, many = _parameters(node_id, partial)
    _refuse_more(node_id, partial, places, 3)
    if not places:
        return Shape(y=many, state=many)
    rest = places[1:]
    state = any(p.name == "state" for p in rest)
    others = [p for p in rest if p.name != "state"]
    y = any(p.name in _TARGET_NAMES or p.default is p.empty for p in others[:1])
    return Shape(y=y, state=state or any(p.default is p.empty for p in others[1:2]))


_READERS: Final[dict[str, Callable[[str, Callable[..., Any], bool], Shape]]] = {
    "forward": _forward_shape,
    "fit": _fit_shape,
    "partial_fit": _partial_shape,
}


def _by_keyword(method: Callable[..., Any], names: dict[str, Any]) -> bool:
    try:
        known = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False
    return all(name in known and known[name].kind is not inspect.Parameter.POSITIONAL_ONLY for name in names)
