"""A job runner over a folder store, with environments that the session's tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from somatize_worker.hosts.environments import Environments
from somatize_worker.jobs import JobOutcome, JobRunner
from somatize_worker.settings import Settings
from somatize_worker.stores.files import FileStore


@pytest.fixture(scope="session")
def env_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's environments lie."""
    return tmp_path_factory.mktemp("environments")


@dataclass
class Heard:
    """What one run told while it ran."""

    progress: list[tuple[str, int, int, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def on_progress(self, phase: str, step: int, total: int, metrics: Any) -> None:
        self.progress.append((phase, step, total, metrics))

    def on_output(self, lines: list[str]) -> None:
        self.lines += lines
        self.at.append(time.monotonic())

    @property
    def phases(self) -> list[tuple[str, int, int]]:
        """The four phases, without their messages and the job's own steps."""
        return list(dict.fromkeys((phase, step, total) for phase, step, total, _ in self.progress if total == 4))


class Workshop:
    """Runs jobs written as source text."""

    def __init__(self, folder: Path, env_folder: Path) -> None:
        self.settings = Settings(env_folder=str(env_folder), job_folder=str(folder / "jobs"))
        self.store = FileStore(folder / "store", self.settings)
        self.environments = Environments(self.settings)
        self.heard = Heard()
        self._runner: JobRunner | None = None
        self._number = 0

    @property
    def runner(self) -> JobRunner:
        if self._runner is None:
            self._runner = JobRunner(self.settings, self.store, "worker-1", self.environments)
        return self._runner

    def limit(self, **settings: Any) -> None:
        """Other settings from now on."""
        self.close()
        self.settings = replace(self.settings, **settings)
        self.environments = Environments(self.settings)

    def job(self, source: str = "", *, files: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        self._number += 1
        sources = {"train.py": source, **(files or {})}
        return {
            "job_id": f"job{self._number}",
            "pipeline_id": "pipeline-7",
            "investigation_id": "investigation-9",
            "files": [{"path": path, "content": content} for path, content in sources.items()],
            "requirements": "",
            "entry_point": "train.py",
            "input_data": None,
            "params": {},
            **fields,
        }

    def run(self, source: str = "", *, options: dict[str, Any] | None = None, **fields: Any) -> JobOutcome:
        """Run one job; what it told is in ``heard``."""
        self.heard = Heard()
        return self.runner.run(
            self.job(source, **fields),
            on_progress=self.heard.on_progress,
            on_output=self.heard.on_output,
            **(options or {}),
        )

    def start(self, source: str = "", **arguments: Any) -> Callable[[], JobOutcome]:
        """Run one job in a thread; the returned function waits for its outcome."""
        outcomes: list[JobOutcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(self.run(source, **arguments)))
        thread.start()

        def outcome() -> JobOutcome:
            thread.join(60)
            assert outcomes, "the job did not end"
            return outcomes[0]

        return outcome

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def leftovers(self) -> list[Path]:
        """What jobs left in their folder."""
        return list(Path(self.settings.job_folder).iterdir())


@pytest.fixture
def workshop(tmp_path: Path, env_folder: Path) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path, env_folder)
    yield workshop
    workshop.close()
    assert workshop.leftovers() == []
