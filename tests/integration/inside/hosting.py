"""A filter host as its worker sees it: a process at the other end of a socket pair."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from somatize_worker.hosts.frames import Channel
from somatize_worker.hosts.inside import __file__ as inside
from somatize_worker.packing import Reference, pack
from somatize_worker.stores import formats

PROGRAM = Path(inside).with_name("__main__.py")
WAIT_S = 60.0


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """What the condition returns once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)
    return result


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def spec(plan: Any, filters: Mapping[str, Any] | None = None, value: Any = None, **options: Any) -> bytes:
    """A plan as it lies in the ledger. Options: ``mode``, ``states``, ``edges``, ``plan_id``, and those of ``soma``."""
    states = options.pop("states", {})
    mode, edges = options.pop("mode", "Forward"), options.pop("edges", None)
    plan_id = options.pop("plan_id", "p")
    packed = [
        {
            "node_id": node_id,
            "pickle": filter if isinstance(filter, bytes) else cloudpickle.dumps(filter),
            "state": states.get(node_id),
            "requirements": [],
            "trainable": False,
        }
        for node_id, filter in (filters or {}).items()
    ]
    metadata = {"soma": options, **({} if edges is None else {"edges": edges})}
    return pack(
        {"plan_id": plan_id, "plan": plan, "mode": mode, "input": value, "filters": packed, "metadata": metadata}
    )


class Ended:
    """How a plan ended: the last frame's kind and content, everything that came before, and all events."""

    def __init__(self, frames: list[list[Any]]) -> None:
        self.frames = frames
        self.kind, self.content = frames[-1]
        texts = [text for frame in frames[:-1] if frame[0] == "events" for text in frame[1]]
        self.events = [json.loads(text) for text in [*texts, *self.content.get("events", [])]]

    @property
    def output(self) -> Any:
        assert self.kind == "done", self.content
        return self.content["output"]

    @property
    def error(self) -> str:
        assert self.kind == "failed", self.content
        return str(self.content["error"])


class Hosted:
    """One host process, its store in ``folder``."""

    def __init__(self, folder: Path, *, python: Path | str = sys.executable, environ: Mapping[str, str] | None = None):
        ours, theirs = socket.socketpair()
        self.folder = folder
        self.output = folder / "printed"
        with self.output.open("wb") as printed:
            self.process = subprocess.Popen(
                [str(python), "-u", str(PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environ or {})},
            )
        theirs.close()
        self.channel = Channel(ours)
        self.cache: dict[bytes, Reference] = {}
        self.asked: list[str] = []
        ready = self.channel.receive(WAIT_S)
        assert ready is not None, self.printed()
        assert ready[0] == "ready"
        self.ready = ready[1]

    def __enter__(self) -> Hosted:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(WAIT_S)

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def send(self, packed_spec: bytes, **request: Any) -> None:
        """Have a plan run."""
        content = {
            "plan_id": "p", "epoch": 1, "spec": packed_spec, "journal": {}, "store": str(self.folder),
            "inline_limit": 1 << 16, "worker_id": "w1", "cores": 2, "keep": False, "first": True, **request,
        }  # fmt: skip
        self.channel.send(["run", content])

    def receive(self) -> list[Any]:
        """The next frame; questions are answered as a worker would."""
        while True:
            frame = self.channel.receive(WAIT_S)
            assert frame is not None, f"nothing came; printed: {self.printed()}"
            if frame[0] != "ask":
                return frame
            _, number, what, payload = frame
            self.asked.append(what)
            self.channel.send(["answer", number, self._answer(what, payload)])

    def _answer(self, what: str, payload: dict[str, Any]) -> dict[str, Any]:
        if what == "find":
            return {"reference": self.cache.get(payload["key"])}
        if what == "keep":
            stored = payload["reference"] if "reference" in payload else self.put(payload["value"])
            self.cache[payload["key"]] = stored
            return {"reference": stored}
        path = self.folder / payload["reference"].fields["path"]
        return {"path": str(path)} if path.exists() else {"missing": f"there is no {path.name}"}

    def put(self, value: Any) -> Reference:
        """A value in the store."""
        path = formats.write(self.folder / formats.new_name(), value)
        return Reference(type="Local", path=str(path.relative_to(self.folder)))

    def get(self, stored: Any) -> Any:
        """The value behind what the host stored."""
        return formats.read(self.folder / stored.fields["path"]) if isinstance(stored, Reference) else stored

    def end(self) -> Ended:
        """Everything up to the last frame of the plan."""
        frames = []
        while True:
            frames.append(self.receive())
            if frames[-1][0] in ("done", "failed", "suspended"):
                return Ended(frames)

    def run(self, packed_spec: bytes, **request: Any) -> Ended:
        """Run a plan to its end."""
        self.send(packed_spec, **request)
        return self.end()
