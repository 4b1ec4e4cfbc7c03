"""Submit the training script from Python, watch it, fetch what it leaves.

python examples/jobs/submit.py             # on a cluster of its own
SOMA_REDIS_URL=redis://host:6379/0 python examples/jobs/submit.py gpu
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path

from somatize_worker import Coordinator, LocalCluster, protocol

HERE = Path(__file__).parent


def job(**params: object) -> protocol.PythonPipelineJob:
    sources = HERE / "spirals"
    return protocol.PythonPipelineJob(
        job_id=f"spirals-{uuid.uuid4().hex[:8]}",
        pipeline_id="spirals",
        investigation_id="examples",
        files=tuple(
            protocol.PipelineFile(path=path.name, content=path.read_text()) for path in sorted(sources.glob("*.py"))
        ),
        requirements=(sources / "requirements.txt").read_text(),
        entry_point="train.py",
        input_data=json.loads((HERE / "data.json").read_text()),
        params=params,
    )


def train(coordinator: Coordinator, target: str) -> None:
    handle = coordinator.assign_python_job(job(epochs=40, lr=0.5), target)
    for progress in handle.progress():
        print(f"{progress.phase:<16} {progress.step}/{progress.total}  {progress.metrics}")
    result = handle.result()
    print(result.output if not result.success else result.metrics)
    for path in handle.fetch(Path("outputs")):
        print(path)


if __name__ == "__main__":
    if "SOMA_REDIS_URL" in os.environ:
        with Coordinator() as coordinator:
            train(coordinator, sys.argv[1] if len(sys.argv) > 1 else "cpu")
    else:
        with LocalCluster({"cpu": 1}) as cluster:
            train(cluster.coordinator(), "cpu")
