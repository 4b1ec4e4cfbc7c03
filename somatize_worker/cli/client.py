"""How commands reach a cluster, and the plan that somebody means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from somatize_worker.errors import PlanNotFound

if TYPE_CHECKING:
    from somatize_worker.coordinator import Coordinator

_LOOK_AMONG: Final = 1000
_SHOWN: Final = 5

PlanId = Annotated[
    str, typer.Argument(metavar="PLAN", help="Id of the plan or job, or the beginning of one that is unique.")
]


@contextmanager
def connected(url: str | None) -> Iterator[Coordinator]:
    """A coordinator of the cluster at ``url`` (default: where ``SOMA_*`` variables say), closed at the end."""
    from somatize_worker.coordinator import Coordinator

    with Coordinator(url) as coordinator:
        yield coordinator


def find_plan(coordinator: Coordinator, text: str) -> str:
    """The id that ``text`` is, or is the beginning of.

    Raises:
        PlanNotFound: there is none, or more than one.
    """
    try:
        coordinator.ledger.state(text)
        return text
    except PlanNotFound as unknown:
        records = coordinator.ledger.records(limit=_LOOK_AMONG, children=True)
        found = [record.plan_id for record in records if text and record.plan_id.startswith(text)]
        if len(found) == 1:
            return found[0]
        whole = [plan_id for plan_id in found if not any(plan_id.startswith(f"{other}.") for other in found)]
        if len(whole) == 1:  # a plan, and the parts of it that run elsewhere
            return whole[0]
        if not found:
            raise PlanNotFound(
                f"no plan or job {text!r} is known: see `somatize plans`; finished ones are forgotten after "
                f"SOMA_RESULT_TTL_S ({coordinator.settings.result_ttl_s:g} s)",
                plan_id=text,
            ) from unknown
        more = f" and {len(whole) - _SHOWN} more" if len(whole) > _SHOWN else ""
        raise PlanNotFound(
            f"{text!r} is the beginning of {', '.join(whole[:_SHOWN])}{more}: give more of it", plan_id=text
        ) from unknown
