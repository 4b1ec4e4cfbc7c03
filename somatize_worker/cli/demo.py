"""``somatize demo``: the main job on real data, on a cluster that comes and goes with the command."""

from __future__ import annotations

import importlib.util
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from somatize_worker.cli.output import Json, console, print_json
from somatize_worker.errors import InvalidPipeline


def demo(
    json: Json = False,
    seed: Annotated[int, typer.Option(help="Seed for the split of the data.")] = 0,
) -> None:
    """Train and evaluate a scikit-learn pipeline on two workers, and show how it went.

    Example: [cyan]somatize demo[/]
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InvalidPipeline("the demo needs scikit-learn: pip install 'somatize-worker[demo]'")
    from somatize_worker.local import LocalCluster

    started = time.perf_counter()
    if not json:
        console.print("Starting a server and two workers, tagged [cyan]cpu[/] and [cyan]trainer[/] …")
    with LocalCluster({"cpu": 1, "trainer": 1}) as cluster, cluster.coordinator() as coordinator:
        ready_s = time.perf_counter() - started
        figures = _train(coordinator, seed, progress=not json)
    figures["cluster_ready_s"] = round(ready_s, 2)
    figures["total_s"] = round(time.perf_counter() - started, 2)
    if json:
        print_json(figures)
    else:
        _show(figures)


def _train(coordinator: Any, seed: int, *, progress: bool) -> dict[str, Any]:
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from somatize_worker.pipeline import as_step

    images, digits = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(images, digits, test_size=0.25, random_state=seed)
    steps = as_step(StandardScaler()).named("scale") >> as_step(PCA(n_components=30, random_state=seed)).named("reduce")
    pipeline = steps >> as_step(SVC(C=5.0, gamma=0.02)).named("classify").on("trainer")

    run = coordinator.fit(pipeline, x_train, y_train, on="cpu")
    result = run.result(timeout=120, progress=progress)
    predicted = coordinator.forward(result.pipeline, x_test, on="cpu").result(timeout=120).output
    nodes = [
        {"node": message.event.node_id, "worker": message.worker_id, "ms": message.event.duration}
        for message in run.messages()
        if message.event.event_type == "NodeCompleted"
    ]
    return {
        "data": f"digits: {len(x_train)} images to learn from, {len(x_test)} to test on",
        "nodes": nodes,
        "accuracy": float((predicted == y_test).mean()),
        "fit_ms": round(result.duration.total_seconds() * 1000),
    }


def _show(figures: dict[str, Any]) -> None:
    table = Table("step", "ran on", "took", box=None, padding=(0, 2))
    table.columns[2].justify = "right"
    for node in figures["nodes"]:
        table.add_row(node["node"], f"[cyan]{node['worker']}[/]", f"{node['ms']} ms")
    console.print(f"\n{figures['data']}\n")
    console.print(table)
    console.print(f"\naccuracy on the test images: [bold green]{figures['accuracy']:.1%}[/]")
    console.print(
        f"[dim]cluster ready in {figures['cluster_ready_s']} s, all done in {figures['total_s']} s; "
        "server and workers are stopped, nothing is left behind[/]"
    )
