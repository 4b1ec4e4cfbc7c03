"""The README's tour runs as it stands there, and the plain Celery client beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from somatize_worker import LocalCluster

ROOT = Path(__file__).parents[2]


def test_the_tour_runs_as_written(tmp_path: Path) -> None:
    tour = (ROOT / "README.md").read_text().partition("## Five minutes")[2].partition("### From the command line")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", tour, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    script = tmp_path / "tour.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "cpu-1 ['Scale', 'Regress']"
    assert [line.split()[0] for line in said if line.startswith(("Run", "Node"))] == [
        *("RunStarted", "NodeStarted", "NodeCompleted", "NodeStarted", "NodeCompleted", "RunCompleted"),
    ]
    assert said[-4:-1] == ["(1000, 5)", "['cold']", "333283335000"]
    assert "killed by SIGABRT" in said[-1]
    assert "✓  Regress  gpu-1" in done.stderr


def test_a_program_that_knows_celery_only() -> None:
    with LocalCluster({"gpu": 1}, slots=1) as cluster:
        environ = {**os.environ, "SOMA_REDIS_URL": cluster.settings.redis_url}
        client = [sys.executable, str(ROOT / "examples" / "celery_client.py"), "gpu"]
        done = subprocess.run(client, env=environ, capture_output=True, text=True, timeout=100, check=False)
    answer = json.loads(done.stdout)
    assert answer["result"]["output"]["value"]["data"]["values"] == [4.0, 8.0, 12.0], done.stderr
    assert answer["worker_id"] == "gpu-1"
    assert "somatize_worker" not in re.findall(r"import (\w+)", Path(client[1]).read_text())
