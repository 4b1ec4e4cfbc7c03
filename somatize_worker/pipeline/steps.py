"""The pipeline tree: what ``>>``, ``|`` and their friends build. Every node is immutable; methods return new ones.

Scaler() >> Model().on("gpu")               one after the other
left | right                                 both get the same input; the output is a mapping
loop(step, max_iterations=10)                again and again on its own output
branch(chooser, {"cat": a, "dog": b})        one arm, chosen by the output of a step
composite(encoder, head)                     in one process, tensors passed directly
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.adapters import adapt, kind_of, name_of
from somatize_worker.pipeline.loops import Result, Until
from somatize_worker.pipeline.show import html, shortened, tree
from somatize_worker.pipeline.targets import Target

_MOST_CHARACTERS: Final = 200


class Operators:
    """``>>``, ``|`` and the methods of a pipeline, for whatever can stand for a step."""

    # numpy leaves operators with an array on the left to us, and so to a clear error
    __array_ufunc__ = None

    def _node(self) -> Pipeline:
        return as_step(self)

    def __rshift__(self, after: Any) -> Pipeline:
        return pipeline(self, after)

    def __rrshift__(self, before: Any) -> Pipeline:
        return pipeline(before, self)

    def __or__(self, other: Any) -> Pipeline:
        return fork(self, other)

    def __ror__(self, other: Any) -> Pipeline:
        return fork(other, self)

    def named(self, name: str) -> Pipeline:
        """The same under a name: a step's node id; a label for a chain, which a fork shows as that branch's key.

        Raises:
            InvalidPipeline: the name is not text, empty, too long, or has control characters.
        """
        if not isinstance(name, str) or not name.strip() or len(name) > _MOST_CHARACTERS or not name.isprintable():
            raise InvalidPipeline(
                f"{name!r} cannot be a name: it should be printable text, not empty, at most 200 long"
            )
        return replace(self._node(), name=name)

    def on(self, target: Any) -> Pipeline:
        """The same, run by a worker that serves a tag (``"gpu"``) or has an id (``protocol.WorkerId("w1")``)."""
        return replace(self._node(), target=Target.of(target))

    def spread(self, spread: bool = True) -> Pipeline:
        """The same, with branches of forks sent to workers of their own rather than run in one process."""
        return replace(self._node(), spreading=spread)

    def cached(self, cached: bool = True) -> Pipeline:
        """The same, with outputs and fitted states kept in the store and looked up there, by content, the next time.

        ``False`` keeps the steps out of the cache even where the whole plan asks for it.
        """
        return replace(self._node(), caching=cached)

    def describe(self) -> str:
        """The pipeline as a tree, in text: node ids, kinds, and where each step runs."""
        return tree(self._node())

    def _repr_html_(self) -> str:
        return html(self._node())


@dataclass(frozen=True, kw_only=True, eq=False)
class Pipeline(Operators):
    """A node of the tree. ``target``, ``spreading`` and ``caching`` are None where the user did not say."""

    name: str | None = None
    target: Target | None = None
    spreading: bool | None = None
    caching: bool | None = None

    def _node(self) -> Self:
        return self

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        """The nodes directly below, in order."""
        return ()

    @property
    def is_bare(self) -> bool:
        """Whether nothing was said about the node as a whole, so that it may be merged into another."""
        return self.name is None and self.target is None and self.spreading is None and self.caching is None

    @property
    def flow(self) -> str:
        """The node on one line: ``Scaler → Model@gpu``."""
        label = f"{self.name}: " if self.name else ""
        inner = self._flow()
        return f"{label}{inner}" if self.target is None else f"{label}({inner})@{self.target}"

    def _flow(self) -> str:
        return ""

    @property
    def title(self) -> str:
        """The node's own line in a tree: what it is, its name, where it runs."""
        notes = [f"@{self.target}" if self.target else "", "spread" if self.spreading else ""]
        notes.append("" if self.caching is None else "cached" if self.caching else "not cached")
        return " ".join(word for word in (type(self).__name__, self.name or "", *notes) if word)

    @property
    def shown(self) -> list[tuple[str, Pipeline]]:
        """The nodes directly below, each with a caption, for showing."""
        return [("", part) for part in self.parts]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.flow}>"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Step(Pipeline):
    """One filter."""

    filter: Any

    @property
    def kind(self) -> str:
        """``trainable`` or ``stateless``."""
        return kind_of(self.filter)

    @property
    def base_name(self) -> str:
        """What the node id is derived from when the step has no name."""
        return name_of(self.filter)

    @property
    def flow(self) -> str:
        return f"{self.name or self.base_name}@{self.target}" if self.target else self.name or self.base_name

    @property
    def title(self) -> str:
        name, base = self.name or self.base_name, self.base_name
        rest = super().title.removeprefix("Step").removeprefix(f" {self.name}" if self.name else "")
        return f"{name}{'' if name == base else f' ({base})'}{rest} · {self.kind}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Chain(Pipeline):
    """Steps one after the other."""

    steps: tuple[Pipeline, ...]

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        return self.steps

    def _flow(self) -> str:
        return " → ".join(shortened([step.flow for step in self.steps]))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Fork(Pipeline):
    """Branches that get the same input; the output maps each branch's last node id to its output."""

    branches: tuple[Pipeline, ...]

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        return self.branches

    def _flow(self) -> str:
        return f"({' | '.join(shortened([branch.flow for branch in self.branches]))})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Loop(Pipeline):
    """A body that runs again on its own output."""

    body: Pipeline
    max_iterations: int | None = None

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        return (self.body,)

    def _flow(self) -> str:
        return f"Loop{'' if self.max_iterations is None else f'×{self.max_iterations}'}({self.body.flow})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Branch(Pipeline):
    """A step whose output chooses one of the arms, each a (label, pipeline)."""

    chooser: Step
    arms: tuple[tuple[str, Pipeline], ...]

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        return (self.chooser, *(arm for _, arm in self.arms))

    @property
    def shown(self) -> list[tuple[str, Pipeline]]:
        return [("", self.chooser), *((f"{label}: ", arm) for label, arm in self.arms)]

    def _flow(self) -> str:
        return f"{self.chooser.flow}{{{', '.join(shortened([f'{label}: {arm.flow}' for label, arm in self.arms]))}}}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Composite(Pipeline):
    """Steps that run in one process and pass tensors directly."""

    steps: tuple[Step, ...]

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        return self.steps

    def _flow(self) -> str:
        return f"[{' + '.join(step.flow for step in self.steps)}]"


def as_step(obj: Any) -> Pipeline:
    """A pipeline from anything that is accepted as a step.

    Example:
        >>> as_step(len).named("count") >> (lambda n: n + 1)
        <Chain count → lambda>

    Raises:
        InvalidPipeline: it cannot be a step: what it is, and what is accepted.
    """
    return obj if isinstance(obj, Pipeline) else Step(filter=adapt(obj))


def pipeline(*steps: Any, name: str | None = None) -> Pipeline:
    """Steps one after the other: ``a >> b >> c``, also where none of them is this package's.

    Example:
        >>> pipeline(StandardScaler(), LogisticRegression(), name="iris")

    Raises:
        InvalidPipeline: no steps, or something that cannot be one.
    """
    flat: list[Pipeline] = []
    for step in map(as_step, steps):
        flat.extend(step.steps if isinstance(step, Chain) and step.is_bare else (step,))
    if not flat:
        raise InvalidPipeline("a pipeline needs at least one step: pipeline(Scaler(), Model())")
    made = flat[0] if len(flat) == 1 else Chain(steps=tuple(flat))
    return made if name is None else made.named(name)


def fork(*branches: Any, spread: bool | None = None, **named: Any) -> Pipeline:
    """Branches that get the same input and run at the same time: ``a | b``.

    The output is a mapping from each branch's last node id, or from the name given here, to that branch's output.

    Example:
        >>> fork(mean=np.mean, range=np.ptp) >> report

    Args:
        branches: pipelines, or anything accepted as a step.
        spread: True sends the branches to workers of their own.
        named: branches by name.

    Raises:
        InvalidPipeline: no branches, or something that cannot be one.
    """
    flat: list[Pipeline] = []
    for one in map(as_step, branches):
        flat.extend(one.branches if isinstance(one, Fork) and one.is_bare else (one,))
    flat.extend(as_step(one).named(name) for name, one in named.items())
    if not flat:
        raise InvalidPipeline("a fork needs at least one branch: fork(left=a, right=b)")
    return Fork(branches=tuple(flat), spreading=spread)


def loop(
    *body: Any,
    max_iterations: int | None = None,
    until: Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Pipeline:
    """A body that runs again and again, each round on the output of the last.

    It stops after ``max_iterations`` rounds, when ``until(output)`` is true, or when the body's output itself says so:
    ``None``, ``True``, ``"done"``, ``"stop"`` or a mapping whose ``done`` is true. The loop's output is that of the
    last round.

    Example:
        >>> loop(lambda x: x / 2, until=lambda x: x < 1)

    Args:
        body: one or more steps.
        max_iterations: rounds at most; None means 100.
        until: looks at the output of each round.
        name: the loop's node id (with ``until``, that of the step which hands out the loop's output).

    Raises:
        InvalidPipeline: no body, or a ``max_iterations`` that is not a positive integer.
    """
    if max_iterations is not None and (type(max_iterations) is not int or max_iterations < 1):
        raise InvalidPipeline(f"max_iterations={max_iterations!r} should be a positive integer, or None for 100")
    inner = pipeline(*body)
    label = name or "Loop"
    if until is None:
        return Loop(body=inner, max_iterations=max_iterations, name=name)
    rounds = Loop(
        body=pipeline(inner, Step(filter=Until(until, f"{label}_until"))),
        max_iterations=max_iterations,
        name=f"{name}_rounds" if name else None,
    )
    return pipeline(rounds, Step(filter=Result(f"{label}_result"), name=name))


def branch(chooser: Any, arms: Mapping[Any, Any], *, default: Any = None, name: str | None = None) -> Pipeline:
    """One of several pipelines, chosen by a step's output; the arm gets the input that the chooser got.

    Example:
        >>> branch(lambda x: x.ndim == 2, {True: classify_table, False: classify_series})

    Args:
        chooser: a step whose output is a label (text or a bool), or a mapping with the label under ``branch``.
        arms: label to pipeline.
        default: the arm for labels that are not there; without it, the first arm.
        name: the node id of the chooser.

    Raises:
        InvalidPipeline: no arms, a label that is neither text nor bool, or a chooser that is not a single step.
    """
    step = as_step(chooser)
    if not isinstance(step, Step):
        raise InvalidPipeline(f"a branch is chosen by one step, not by {step!r}: put the steps before in front of it")
    labelled: dict[str, Pipeline] = {}
    for label, arm in arms.items():
        if not isinstance(label, (str, bool)):
            raise InvalidPipeline(f"{label!r} cannot be a branch's label: it should be text, True or False")
        labelled[label if isinstance(label, str) else str(label).lower()] = as_step(arm)
    if default is not None:
        labelled["default"] = as_step(default)
    if not labelled:
        raise InvalidPipeline('a branch needs at least one arm: branch(chooser, {"yes": a, "no": b})')
    return Branch(chooser=step, arms=tuple(labelled.items()), name=name)


def composite(*steps: Any, name: str | None = None) -> Pipeline:
    """Steps that run one after the other in one process, tensors passed directly, trained together where they can be.

    Raises:
        InvalidPipeline: no steps, or a part that is not a single step or that names a place to run of its own.
    """
    inner = pipeline(*steps)
    members = inner.steps if isinstance(inner, Chain) and inner.is_bare else (inner,)
    for member in members:
        if not isinstance(member, Step):
            raise InvalidPipeline(f"a composite holds single steps, not {member!r}")
        if member.target is not None:
            raise InvalidPipeline(
                f"{member!r} names a place to run, but a composite runs in one process: put .on(...) on the composite",
            )
    return Composite(steps=tuple(step for step in members if isinstance(step, Step)), name=name)
