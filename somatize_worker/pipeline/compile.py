"""Pipelines frozen for sending: plan and pickles made once, a plan's spec in microseconds."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from somatize_worker.errors import InvalidPipeline
from somatize_worker.packing import Reference
from somatize_worker.pipeline import pickling
from somatize_worker.pipeline.adapters import wrapped
from somatize_worker.pipeline.fingerprint import fingerprint_of
from somatize_worker.pipeline.function_adapter import FunctionFilter
from somatize_worker.pipeline.outline import Node, Plan, depth_of, normalised, outline, targets_in
from somatize_worker.pipeline.steps import Pipeline, as_step
from somatize_worker.pipeline.targets import Target
from somatize_worker.values import PICKLE_MAGIC, pickle_state

Mode = Literal["fit", "forward"]
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_LONGEST_SUMMARY: Final = 200


@dataclass(frozen=True)
class CompiledFilter:
    """One filter, pickled. ``caching``: True and False are settled, None leaves it to the plan."""

    node_id: str
    pickle: bytes
    requirements: tuple[str, ...]
    trainable: bool
    caching: bool | None

    def entry(self, state: Any = None) -> dict[str, Any]:
        """The filter as it stands in a plan's spec."""
        return {
            "node_id": self.node_id,
            "pickle": self.pickle,
            "state": state,
            "requirements": list(self.requirements),
            "trainable": self.trainable,
        }


class CompiledPipeline:
    """A pipeline whose filters have been pickled: later changes to its objects are not seen.

    Made by :func:`compile_once`. It can be sent any number of times, from any thread.

    Attributes:
        plan: the plan in JSON form, every part that names a place to run in a ``Remote``.
        filters: the filters in running order.
        summary: the pipeline on one line: ``Scaler → Model@gpu``.
        python: the minor version that pickled (``"3.11"``).
        requirements: what the filters declare to need, together, sorted.
        targets: names of the tags and workers that parts of it are sent to.
        depth: how deep the plan is nested.
    """

    def __init__(
        self,
        plan: Plan,
        filters: Iterable[CompiledFilter],
        *,
        summary: str = "",
        python: str = PYTHON,
        spread: bool = False,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.plan = plan
        self.filters = tuple(filters)
        self.summary = summary
        self.python = python
        self.spread = spread
        self.requirements = tuple(sorted({line for one in self.filters for line in one.requirements}))
        self.depth = depth_of(plan)
        self.targets = tuple(target.name for target in targets_in(plan))
        self._fingerprints = dict(fingerprints or {})
        self._plans: dict[Target | None, Plan] = {None: plan}
        self._entries = [one.entry() for one in self.filters]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"

    @cached_property
    def code(self) -> str:
        """Hex SHA-256 over pickles, requirements and Python version: which warm process fits."""
        digest = hashlib.sha256(self.python.encode())
        for one in self.filters:
            digest.update(len(one.pickle).to_bytes(8, "little"))
            digest.update(one.pickle)
        digest.update("\n".join(self.requirements).encode())
        return digest.hexdigest()

    @property
    def node_ids(self) -> tuple[str, ...]:
        """Every filter's node id, in running order."""
        return tuple(one.node_id for one in self.filters)

    @property
    def trainable(self) -> tuple[str, ...]:
        """The node ids that ``fit`` gives a state."""
        return tuple(one.node_id for one in self.filters if one.trainable)

    @property
    def home(self) -> Target | None:
        """Where the whole pipeline was told to run, if it was (``pipeline.on("gpu")``)."""
        remote = self.plan.get("Remote")
        return None if remote is None else Target.of(remote["target"])

    def plan_at(self, default_tag: Any = None) -> Plan:
        """The plan for a queue: steps that name that very tag or worker are not sent anywhere."""
        target = None if default_tag is None else Target.of(default_tag)
        if target not in self._plans:
            assert target is not None
            self._plans[target] = normalised(self.plan, target.to_json())
        return self._plans[target]

    def spec(
        self,
        *,
        plan_id: str,
        mode: Mode | str,
        input: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        states: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        default_tag: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The spec of one plan. Its parts are shared with other specs: replace them, never change them.

        Args:
            plan_id: the plan's id.
            mode: ``"fit"`` or ``"forward"``.
            input: plain data or a reference.
            y: targets for ``fit``: plain data or a reference.
            batch_size: rows at a time for ``fit``.
            states: node id to state, beside those that a fitted pipeline has.
            metadata: JSON-like data of the user's.
            default_tag: where the plan itself is going to run.
            options: what ``metadata["soma"]`` should say: ``each``, ``spread``, ``events``, ``cache``, ...

        Raises:
            InvalidPipeline: an unknown mode, ``y`` or ``batch_size`` without fit, a state for an unknown node,
                metadata that JSON cannot hold, or a filter to be cached that has no fingerprint.
        """
        return {
            "plan_id": plan_id,
            "plan": self.plan_at(default_tag),
            "mode": _mode(mode, y, batch_size),
            "input": input,
            "filters": self._filters(self._states(states)),
            "metadata": {**_checked(metadata), "soma": self._soma(metadata, options)},
        }

    def fingerprints(self) -> dict[str, str]:
        """Each filter's fingerprint: its code and parameters as they were pickled, by node id.

        Raises:
            InvalidPipeline: a filter without comparable content.
        """
        return {one.node_id: self._fingerprint(one) for one in self.filters}

    def digest(self, spec: Mapping[str, Any]) -> str:
        """What a spec asks for, as hex SHA-256: equal for equal pipelines, data and options, in any process."""
        code = []
        for one in self.filters:
            try:
                code.append(self._fingerprint(one))
            except InvalidPipeline:  # no comparable content: then the same bytes are the same filter
                code.append(hashlib.sha256(one.pickle).hexdigest())
        metadata = {key: value for key, value in spec["metadata"].items() if key != "soma"}
        options = {key: value for key, value in spec["metadata"]["soma"].items() if key != "fingerprints"}
        states = [entry["state"] for entry in spec["filters"]]
        return fingerprint_of(
            [spec["plan"], spec["mode"], spec["input"], code, list(self.node_ids), states, metadata, options,
             list(self.requirements)]
        )  # fmt: skip

    # --- parts of a spec -------------------------------------------------------------------------------------

    def _states(self, states: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return {} if not states else self._checked_states(states)

    def _checked_states(self, states: Mapping[str, Any]) -> dict[str, Any]:
        strangers = sorted(set(states) - set(self.node_ids))
        if strangers:
            raise InvalidPipeline(
                f"states for {', '.join(map(repr, strangers))}, but the pipeline's nodes are "
                f"{', '.join(map(repr, self.node_ids))}",
                unknown=strangers,
            )
        return {node_id: travelling(state) for node_id, state in states.items()}

    def _filters(self, states: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [one.entry(states.get(one.node_id)) for one in self.filters] if states else self._entries

    def _soma(self, metadata: Mapping[str, Any] | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
        given = (metadata or {}).get("soma") or {}
        soma: dict[str, Any] = {"python": self.python, "summary": self.summary, **given, **(options or {})}
        if self.spread:
            soma.setdefault("spread", True)
        everything = bool(soma.get("cache"))
        cached = [one for one in self.filters if (everything if one.caching is None else one.caching)]
        if cached:
            soma["cache"] = True if len(cached) == len(self.filters) else [one.node_id for one in cached]
            soma["fingerprints"] = {one.node_id: self._fingerprint(one) for one in cached}
        elif everything:
            soma["cache"] = False
        return soma

    def _fingerprint(self, one: CompiledFilter) -> str:
        known = self._fingerprints.get(one.node_id)
        if known is None:
            # Of what was pickled, not of the object, which may have changed since.
            known = self._fingerprints[one.node_id] = fingerprint_of(pickling.loads(one.pickle))
        return known


StepSource = CompiledPipeline
"""What a plan was made from; fitted pipelines are compiled ones too."""


def travelling(state: Any) -> Any:
    """A state as it stands in a spec: references, plain data and pickled states as they are, other objects pickled."""
    if isinstance(state, Reference) or (isinstance(state, bytes) and state.startswith(PICKLE_MAGIC)):
        return state
    pickling.trust_loaded()
    return pickle_state(state)


def compile_once(obj: Any) -> CompiledPipeline:
    """Freeze a pipeline, or anything that is accepted as a step; what is frozen already is returned as it is.

    Example:
        >>> compiled = compile_once(Scaler() >> Model().on("gpu"))
        >>> compiled.spec(plan_id="p1", mode="forward", input=x)

    Raises:
        InvalidPipeline: something that cannot be a step, names given twice, a filter that does not pickle, a pipeline
            nested deeper than Python can follow.
    """
    if isinstance(obj, CompiledPipeline):
        return obj
    root = as_step(obj)
    try:
        made = outline(root)
    except RecursionError:
        raise InvalidPipeline("the pipeline is nested too deep to be sent: make it flatter") from None
    pickles: dict[int, bytes] = {}
    return CompiledPipeline(
        made.plan,
        [_compiled(node, pickles) for node in made.nodes],
        summary=_summary(root),
        spread=made.spread,
    )


def compile_pipeline(obj: Any, *, plan_id: str, mode: Mode | str, input: Any = None, **rest: Any) -> dict[str, Any]:
    """The spec of one plan, as :meth:`CompiledPipeline.spec`, for a pipeline that need not be frozen before."""
    return compile_once(obj).spec(plan_id=plan_id, mode=mode, input=input, **rest)


def _compiled(node: Node, pickles: dict[int, bytes]) -> CompiledFilter:
    original = wrapped(node.filter)
    # A function is a filter as it is, and quicker to send and to call without its adapter.
    sent = original if type(node.filter) is FunctionFilter else node.filter
    if id(sent) not in pickles:
        pickles[id(sent)] = pickling.dumps(sent, what=node.node_id)
    wish = (
        getattr(node.filter, "_cacheable", None) if original is node.filter else getattr(original, "_cacheable", None)
    )
    return CompiledFilter(
        node_id=node.node_id,
        pickle=pickles[id(sent)],
        requirements=tuple(pickling.requirements_of(original)),
        trainable=node.trainable,
        caching=wish if node.caching is None else node.caching,
    )


def _summary(root: Pipeline) -> str:
    text = root.flow
    return text if len(text) <= _LONGEST_SUMMARY else f"{text[: _LONGEST_SUMMARY - 1]}…"


def _mode(mode: str, y: Any, batch_size: int | None) -> Any:
    if mode == "fit":
        if batch_size is not None and (
            not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
        ):
            raise InvalidPipeline(
                f"batch_size={batch_size!r} should be a positive integer, or None for all data at once"
            )
        return {"Fit": {"y": y, "batch_size": batch_size}}
    if mode == "forward":
        if y is not None or batch_size is not None:
            raise InvalidPipeline("y and batch_size are for fit; forward takes neither")
        return "Forward"
    raise InvalidPipeline(f'mode {mode!r} is unknown; it should be "fit" or "forward"')


def _checked(metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not metadata:
        return {}
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise InvalidPipeline(
            f"metadata is kept as JSON, and this is not ({error}): use text, numbers, lists, dicts"
        ) from None
    return metadata
