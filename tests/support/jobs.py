"""Python jobs for tests of whole clusters."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from somatize_worker import protocol

HOLDS = """
import json, os, subprocess, sys, time
params = json.load(open(os.environ["SOMA_JOB_PARAMS"]))
folder = params["folder"]
text = "import subprocess as s, sys; s.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
child = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
fd = os.open(folder + "/pids", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, f"{params.get('name', 'holds')} {os.getpid()} {child.pid}\\n".encode())
print("holding")
deadline = time.monotonic() + 60
while not os.path.exists(folder + "/go") and time.monotonic() < deadline:
    time.sleep(0.01)
child.kill()
print(json.dumps({"attempt": int(os.environ["SOMA_JOB_ATTEMPT"])}))
"""
"""Notes its process and one that it started, and holds until ``<folder>/go`` exists: see ``tests.support.busy``."""

RESUMES = """
import json, os, pathlib, time
params = json.load(open(os.environ["SOMA_JOB_PARAMS"]))
state = pathlib.Path(os.environ["SOMA_JOB_CHECKPOINT_DIR"], "state.json")
done = json.loads(state.read_text()) if state.exists() else []
attempt = int(os.environ["SOMA_JOB_ATTEMPT"])
first = len(done) + 1
fd = os.open(params["folder"] + "/pids", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
for step in range(first, 6):
    print(json.dumps({"step": step, "total": 5, "metrics": {"attempt": attempt}}))
    done.append(attempt)
    state.with_suffix(".tmp").write_text(json.dumps(done))
    os.replace(state.with_suffix(".tmp"), state)
    if step == 3 and params.get("hold", True):
        os.write(fd, f"attempt{attempt} {os.getpid()}\\n".encode())
        while not os.path.exists(params["folder"] + "/go"):
            time.sleep(0.01)
print(json.dumps({"done": done, "first": first, "worker": os.environ["SOMA_WORKER_ID"]}))
"""
"""Five steps, a checkpoint after each; the one that does the third holds until ``<folder>/go`` exists."""

SAYS = """
import json, os
params = json.load(open(os.environ["SOMA_JOB_PARAMS"]))
fd = os.open(params["folder"] + "/ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, f"{params['name']}\\n".encode())
print(params["name"])
"""
"""Notes that it ran, under its name, in ``<folder>/ran``: see ``tests.support.busy``."""


def python_job(
    source: str, *, job_id: str = "", files: dict[str, str] | None = None, **fields: Any
) -> protocol.PythonPipelineJob:
    """A job whose ``train.py`` is this source text."""
    sources = {"train.py": source, **(files or {})}
    values: dict[str, Any] = {
        "job_id": job_id or uuid.uuid4().hex,
        "pipeline_id": "pipeline-7",
        "investigation_id": "investigation-9",
        "files": [{"path": path, "content": content} for path, content in sources.items()],
        "requirements": "",
        "entry_point": "train.py",
        **fields,
    }
    return protocol.from_data(protocol.PythonPipelineJob, values)


def holding(folder: Path, name: str = "holds", **fields: Any) -> protocol.PythonPipelineJob:
    """A job that holds until it is let go."""
    return python_job(HOLDS, params={"folder": str(folder), "name": name}, **fields)


def saying(folder: Path, name: str, **fields: Any) -> protocol.PythonPipelineJob:
    """A job that notes that it ran."""
    return python_job(SAYS, params={"folder": str(folder), "name": name}, **fields)


def resuming(folder: Path, **fields: Any) -> protocol.PythonPipelineJob:
    """A job that resumes from its checkpoint."""
    return python_job(RESUMES, params={"folder": str(folder)}, **fields)


_PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "{name}"
version = "1.0"
"""
_BACKEND = """
import os, subprocess, sys, time, zipfile

def build_wheel(directory, settings=None, metadata=None):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    fd = os.open({folder!r} + "/pids", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"build {{os.getpid()}} {{child.pid}}\\n".encode())
    while not os.path.exists({folder!r} + "/go"):
        time.sleep(0.01)
    child.kill()
    about = "{name}-1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(directory, "{name}-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("{name}.py", "built = True\\n")
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(about + "RECORD", "")
    return "{name}-1.0-py3-none-any.whl"
"""


def held_build(folder: Path, name: str) -> str:
    """A requirement whose build notes its processes and holds until ``<folder>/go`` exists, as the jobs above do.

    It is a path: workers accept it with the setting ``env_allow=("paths",)``.
    """
    project = folder / name
    project.mkdir()
    (project / "pyproject.toml").write_text(_PYPROJECT.format(name=name))
    (project / "backend.py").write_text(_BACKEND.format(name=name, folder=str(folder)))
    return str(project)
