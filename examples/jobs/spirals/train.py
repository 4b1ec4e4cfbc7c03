"""A training script as a job. It uses nothing of somatize: environment variables, files, and lines of JSON.

    somatize job examples/jobs/spirals --entry train.py -r examples/jobs/spirals/requirements.txt \
        --input examples/jobs/data.json --param epochs=60 --param lr=0.5

Kill the worker that runs it (another one must be there): it goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import network
import numpy as np

STEPS_PER_EPOCH = 20


def main() -> None:
    params = {"epochs": 40, "lr": 0.5, "hidden": 24, "pause": 0.0, **read_json("SOMA_JOB_PARAMS")}
    x, y = network.spirals(**read_json("SOMA_JOB_INPUT"))
    checkpoint = Path(os.environ["SOMA_JOB_CHECKPOINT_DIR"], "training.npz")
    weights, history = resume(checkpoint, params["hidden"])
    for epoch in range(len(history), params["epochs"]):
        for _ in range(STEPS_PER_EPOCH):
            loss = network.improve(weights, x, y, params["lr"])
        accuracy = float(np.mean((network.predict(weights, x) > 0.5) == y))
        history.append((loss, accuracy))
        save(checkpoint, weights, history)
        metrics = {"loss": round(loss, 4), "accuracy": round(accuracy, 3)}
        print(json.dumps({"step": epoch + 1, "total": params["epochs"], "metrics": metrics}))
        time.sleep(params["pause"])
    leave(weights, history)
    print(json.dumps({"loss": history[-1][0], "accuracy": history[-1][1], "epochs": len(history)}))


def read_json(variable: str) -> Any:
    return json.loads(Path(os.environ[variable]).read_text(encoding="utf-8"))


def resume(checkpoint: Path, hidden: int) -> tuple[network.Weights, list[tuple[float, float]]]:
    """Weights and history of an earlier attempt at this job, or new ones."""
    if not checkpoint.exists():
        return network.start(hidden), []
    with np.load(checkpoint) as saved:
        history = [(float(loss), float(accuracy)) for loss, accuracy in saved["history"]]
        weights = {name: saved[name] for name in saved.files if name != "history"}
    print(f"attempt {os.environ['SOMA_JOB_ATTEMPT']} goes on after epoch {len(history)}")
    return weights, history


def save(checkpoint: Path, weights: network.Weights, history: list[tuple[float, float]]) -> None:
    """Write under another name, then rename: whoever kills us leaves no half-written checkpoint."""
    unfinished = checkpoint.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, history=np.array(history), **weights)
    unfinished.replace(checkpoint)


def leave(weights: network.Weights, history: list[tuple[float, float]]) -> None:
    """What is under outputs/ comes back as files."""
    np.savez("outputs/model.npz", **weights)
    rows = [f"{epoch},{loss},{accuracy}" for epoch, (loss, accuracy) in enumerate(history, 1)]
    Path("outputs/history.csv").write_text("\n".join(["epoch,loss,accuracy", *rows]) + "\n")


if __name__ == "__main__":
    main()
