"""Interruptions of running plans: which stands, and that none comes too early."""

from __future__ import annotations

from somatize_worker.worker.running import Interruption, Running, Runs
from tests.support.claims import claim


def running(plan_id: str = "p", epoch: int = 1) -> Running:
    return Running(claim(plan_id, epoch=epoch))


def test_the_first_interruption_stands() -> None:
    run = running()
    run.interrupt(Interruption.CANCEL, "no need")
    run.interrupt(Interruption.HAND_BACK)
    assert (run.interruption, run.reason) == (Interruption.CANCEL, "no need")


def test_an_interruption_stops_the_work_also_when_it_came_before() -> None:
    stopped: list[str] = []
    run = running()
    with run.stopping_with(lambda: stopped.append("a")):
        run.interrupt(Interruption.CANCEL)
    with run.stopping_with(lambda: stopped.append("b")):
        pass
    run.interrupt(Interruption.CANCEL)
    assert stopped == ["a", "b"]


def test_a_cancellation_may_come_before_the_run_is_known() -> None:
    runs = Runs()
    runs.interrupt("p", Interruption.CANCEL, "early")
    with runs.hold(running("other")) as other, runs.hold(running("p")) as run:
        assert other.interruption is None
        assert (run.interruption, run.reason) == (Interruption.CANCEL, "early")
    with runs.hold(running("p")) as again:
        assert again.interruption is None


def test_other_early_interruptions_are_not_remembered() -> None:
    runs = Runs()
    runs.interrupt("p", Interruption.LOST, epoch=1)
    with runs.hold(running("p", epoch=2)) as run:
        assert run.interruption is None
        runs.interrupt("p", Interruption.LOST, epoch=1)
        assert run.interruption is None
        runs.interrupt("p", Interruption.LOST, epoch=2)
        assert run.interruption is Interruption.LOST


def test_a_newer_run_of_a_plan_takes_the_place_of_the_older() -> None:
    runs = Runs()
    with runs.hold(running("p", epoch=1)) as old, runs.hold(running("p", epoch=2)) as new:
        assert old.interruption is Interruption.LOST
        assert runs.holds() == [("p", 2)]
        runs.interrupt_all(Interruption.HAND_BACK)
        assert new.interruption is Interruption.HAND_BACK
    assert len(runs) == 0
