"""``somatize demo``: train and test a model on a cluster that comes and goes with the command."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from somatize_worker.cli.output import Json, console, print_json
from somatize_worker.errors import SomaError
from somatize_worker.readable import duration

if TYPE_CHECKING:
    from somatize_worker.coordinator import Coordinator, PlanHandle, RunResult


def demo(
    seed: Annotated[int, typer.Option(help="Another split of the data, another start of the training.")] = 0,
    json: Json = False,
) -> None:
    """Train and test a scikit-learn pipeline on two workers that are started for it, and show how it went.

    Example: [cyan]somatize demo[/]
    """
    if importlib.util.find_spec("sklearn") is None:
        raise SomaError("the demo needs scikit-learn: pip install 'somatize-worker[demo]'")
    started = time.perf_counter()
    figures = _run(seed, _Silent() if json else _Teller())
    figures["total_s"] = round(time.perf_counter() - started, 2)
    if json:
        print_json(figures)
    else:
        console.print(
            f"[dim]Server and workers are stopped; nothing is left behind. All in {duration(figures['total_s'])}.[/]\n"
            "[dim]The pipeline: [/]somatize_worker/cli/digits.py[dim], what comes next: [/]README.md",
            highlight=False,
        )


class _Silent:
    """Shows nothing."""

    progress = False

    def say(self, text: str) -> None:
        """A line of the story."""


class _Teller(_Silent):
    """Tells the story as it goes."""

    progress = True

    def say(self, text: str) -> None:
        console.print(text, highlight=False)


def _run(seed: int, teller: _Silent) -> dict[str, Any]:
    from somatize_worker.local import LocalCluster

    begun = time.perf_counter()
    teller.say("Starting a Valkey server and two Celery workers, tagged [cyan]cpu[/] and [cyan]trainer[/] …")
    with LocalCluster({"cpu": 1, "trainer": 1}) as cluster:
        ready_s = round(time.perf_counter() - begun, 2)
        names = " and ".join(f"[cyan]{worker.worker_id}[/]" for worker in cluster.workers)
        teller.say(f"{names} are ready, after {duration(ready_s)}.\n")
        return {"ready_s": ready_s, **_train_and_test(cluster.coordinator(), seed, teller)}


def _train_and_test(coordinator: Coordinator, seed: int, teller: _Silent) -> dict[str, Any]:
    from somatize_worker.cli import digits

    data = digits.load(seed)
    teller.say(f"Training on {len(data.x_train)} images of handwritten digits:")
    training = coordinator.fit(digits.make_pipeline(seed), data.x_train, data.y_train, on="cpu")
    fitted = training.result(timeout=300, progress=teller.progress)
    teller.say(f"\nReading {len(data.x_test)} images that it has not seen:")
    testing = coordinator.forward(fitted.pipeline, data.x_test, on="cpu")
    read = testing.result(timeout=300, progress=teller.progress)
    right = int((read.output == data.y_test).sum())
    accuracy = right / len(data.y_test)
    teller.say(f"\n[bold green]{accuracy:.1%} accuracy[/]: {right} of {len(data.y_test)} digits are read right.\n")
    return {
        "images": {"training": len(data.x_train), "test": len(data.x_test)},
        "training": _story(training, fitted),
        "test": _story(testing, read),
        "accuracy": accuracy,
    }


def _story(handle: PlanHandle, result: RunResult) -> dict[str, Any]:
    """Where each node ran, and how long it took."""
    from somatize_worker import protocol

    nodes = [
        {"node": message.event.node_id, "worker": message.worker_id, "ms": message.event.duration}
        for message in handle.messages()
        if isinstance(message.event, protocol.NodeCompleted)
    ]
    return {"ms": round(result.duration.total_seconds() * 1000), "nodes": nodes}
