"""Python environments for jobs and filter hosts: built once for equal needs, reused, removed when long unused.

An environment is a folder of its own under ``SOMA_ENV_FOLDER``, named by a hash of what it was made from. It is built
under another name and renamed, so whatever stands under its name is complete, however a builder died. Two lock files
beside it order everybody who shares the folder, on this machine or (where the file system has ``flock``) on others:

    <key>.build   held by the one who builds or removes it; the others wait
    <key>.use     held, shared, by everyone who uses it; its time is when it was last taken into use
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from somatize_worker import requirements as lines
from somatize_worker.errors import EnvironmentFailed, PlanCancelled
from somatize_worker.hosts import uv
from somatize_worker.hosts.locks import FileLock
from somatize_worker.hosts.recipe import KEY_CHARS, environment_key, with_base
from somatize_worker.settings import Settings, cache_folder

log = logging.getLogger("somatize.environments")

DESCRIPTION: Final = "soma-environment.json"

_BUILDING: Final = ".building-"
_REMOVING: Final = ".removing-"
_POLL_S: Final = 0.02


class Environment:
    """An environment in use: it is not removed before :meth:`release`. A context manager."""

    def __init__(self, python: Path, key: str, requirements: tuple[str, ...], release: Callable[[], None]) -> None:
        self.python = python
        self.key = key
        self.requirements = requirements
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """This use is over. May be called more than once."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Environments:
    """The environments of this machine's user. One object a process; any thread may use it."""

    def __init__(self, settings: Settings) -> None:
        self.folder = Path(settings.env_folder) if settings.env_folder else cache_folder("environments")
        self._allow = settings.env_allow
        self._index_url = settings.env_index_url
        self._limit_bytes = settings.env_limit_bytes
        self._lock = threading.Lock()
        self._in_use: dict[str, tuple[FileLock, int]] = {}  # one held lock for all uses in this process, and a count
        self._kept: set[str] = set()  # keys that count as used beyond the uses handed out: hosts stay warm in them

    def python_for(
        self,
        requirements: str | Iterable[str],
        progress: Callable[[str], None] | None = None,
        *,
        base: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> Environment:
        """An environment that has these requirements and what they need, and nothing else. Blocks while it is built.

        Args:
            requirements: lines of a requirements file, or its text.
            progress: called with a line at a time of what the builder says.
            base: for a filter host: cloudpickle, msgpack and numpy are there too, and without any requirements it
                is the worker's own Python. Hosts outlive plans, so it stays in use until :meth:`keep_only`.
            cancelled: asked while waiting and building; True ends it.

        Raises:
            EnvironmentFailed: a requirement is refused, or the build failed (the builder's own words).
            PlanCancelled: ``cancelled`` said so.
        """
        wanted = lines.normalise(requirements, allow=self._allow)
        if base and not wanted:
            return Environment(Path(sys.executable), "worker", (), lambda: None)
        if base:
            wanted = with_base(wanted)
        key = environment_key(wanted, self._index_url)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            environment = self._use(key, wanted) or self._built(key, wanted, progress, cancelled)
            if base:
                self._keep(key)
            return environment
        except OSError as error:
            raise EnvironmentFailed(
                f"environments cannot be kept in {self.folder}: {error}; SOMA_ENV_FOLDER names another folder"
            ) from error

    def keep_only(self, interpreters: Collection[Path]) -> None:
        """Of the environments that filter hosts were started in, only these still have hosts; the others may go.

        An :class:`Environment` that was handed out and not released keeps its environment all the same.
        """
        with self._lock:
            unused = {key for key in self._kept if self._python(key) not in interpreters}
            self._kept -= unused
        for key in unused:
            self._let_go(key)

    def evict(self) -> list[str]:
        """Remove the least recently used environments until the rest is within the limit; returns their keys.

        One in use, here or in another process, stays.
        """
        lock = FileLock(self.folder / "evict.lock")
        if not lock.acquire():
            return []
        try:
            sizes = {key: _size_bytes(self.folder / key) for key in self._keys()}
            total, removed = sum(sizes.values()), []
            for key in sorted(sizes, key=self._last_used):
                if total <= self._limit_bytes:
                    break
                if self._remove(key):
                    total -= sizes[key]
                    removed.append(key)
            return removed
        finally:
            lock.release()

    # ── use ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _use(self, key: str, wanted: tuple[str, ...]) -> Environment | None:
        """The environment, marked as in use, if it is there and whole."""
        if not self._hold(key):
            return None
        python = self._python(key)
        if not os.access(python, os.X_OK):
            self._let_go(key)
            return None
        return Environment(python, key, wanted, lambda: self._let_go(key))

    def _python(self, key: str) -> Path:
        return self.folder / key / "bin" / "python"

    def _keep(self, key: str) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept.add(key)
                lock, uses = self._in_use[key]  # the caller's own use
                self._in_use[key] = (lock, uses + 1)

    def _hold(self, key: str) -> bool:
        with self._lock:
            lock, uses = self._in_use.get(key, (FileLock(self.folder / f"{key}.use"), 0))
            if uses == 0 and not lock.acquire(shared=True):
                return False  # it is being removed at this moment
            self._in_use[key] = (lock, uses + 1)
            lock.touch()
            return True

    def _let_go(self, key: str) -> None:
        with self._lock:
            lock, uses = self._in_use[key]
            lock.touch()
            if uses > 1:
                self._in_use[key] = (lock, uses - 1)
            else:
                del self._in_use[key]
                lock.release()

    # ── build ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _built(
        self,
        key: str,
        wanted: tuple[str, ...],
        progress: Callable[[str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> Environment:
        asked = time.time()
        with self._building(key, progress, cancelled):
            environment = self._use(key, wanted)
            if environment is not None:
                return environment
            self._raise_failure_since(key, asked)
            self._clear_away_stale(key)
            try:
                self._build(key, wanted, progress, cancelled)
            except EnvironmentFailed as error:
                self._remember_failure(key, error)
                raise
            environment = self._use(key, wanted)
        if environment is None:
            raise EnvironmentFailed(f"the environment {self.folder / key} was built, but its Python does not start")
        self.evict()
        return environment

    @contextmanager
    def _building(
        self, key: str, progress: Callable[[str], None] | None, cancelled: Callable[[], bool] | None
    ) -> Iterator[None]:
        lock, told = FileLock(self.folder / f"{key}.build"), False
        while not lock.acquire():
            if progress and not told:
                progress("Waiting for another process that builds the same environment")
                told = True
            if cancelled and cancelled():
                raise PlanCancelled("cancelled while its environment was being built")
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            lock.release()

    def _build(
        self,
        key: str,
        wanted: tuple[str, ...],
        progress: Callable[[str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        final = self.folder / key
        if final.exists() and not self._remove_unlocked(key):
            raise EnvironmentFailed(f"the environment {final} is broken and in use; stop what uses it, then try again")
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{key}-", dir=self.folder))
        try:
            target, listed = folder / "env", folder / "requirements.txt"
            listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
            venv = ("venv", "--relocatable", "--no-project", "--python", sys.executable, str(target))
            uv.run(venv, log=folder / "venv.log", cancelled=cancelled)
            if wanted:
                # Copied, not linked: a job that changes a file of its environment must not change uv's cache.
                source = ["--default-index", self._index_url] if self._index_url else []
                if any(map(lines.local_path, wanted)):
                    source.append("--refresh")  # uv takes a project whose pyproject.toml is unchanged for unchanged
                python = ("--python", str(target / "bin" / "python"), "--link-mode", "copy")
                uv.run(
                    ("pip", "install", *source, *python, "-r", str(listed)),
                    log=folder / "install.log",
                    progress=progress,
                    cancelled=cancelled,
                )
            _describe(target, wanted, time.monotonic() - started)
            target.rename(final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remember_failure(self, key: str, error: EnvironmentFailed) -> None:
        """For those who wait for this build: they get its answer instead of each trying again."""
        (self.folder / f"{key}.failed").write_text(error.message, encoding="utf-8")

    def _raise_failure_since(self, key: str, asked: float) -> None:
        failure = self.folder / f"{key}.failed"
        try:
            failed_just_now = failure.stat().st_mtime >= asked
        except FileNotFoundError:
            return
        if failed_just_now:
            raise EnvironmentFailed(failure.read_text(encoding="utf-8"))
        failure.unlink(missing_ok=True)

    # ── removal ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _keys(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.folder) if len(entry.name) == KEY_CHARS and entry.is_dir()]

    def _last_used(self, key: str) -> float:
        try:
            return (self.folder / f"{key}.use").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _remove(self, key: str) -> bool:
        build = FileLock(self.folder / f"{key}.build")
        if not build.acquire():
            return False
        try:
            return self._remove_unlocked(key)
        finally:
            build.release()

    def _remove_unlocked(self, key: str) -> bool:
        """Remove an environment that nobody uses; the caller holds its build lock."""
        use = FileLock(self.folder / f"{key}.use")
        if not use.acquire():
            return False
        away = self.folder / f"{_REMOVING}{key}-{secrets.token_hex(4)}"
        try:
            (self.folder / key).rename(away)
        except OSError as error:
            log.warning("the environment %s cannot be removed: %s", self.folder / key, error)
            return False
        finally:
            use.release()
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _clear_away_stale(self, own_key: str) -> None:
        """Remove what dead builders and removers left. Who holds a key's build lock is alive; ours we hold."""
        for entry in list(os.scandir(self.folder)):
            if entry.name.startswith(_REMOVING):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name.startswith(_BUILDING):
                key = entry.name.removeprefix(_BUILDING)[:KEY_CHARS]
                lock = FileLock(self.folder / f"{key}.build")
                if key == own_key or lock.acquire():
                    shutil.rmtree(entry.path, ignore_errors=True)
                    lock.release()


def _describe(target: Path, wanted: tuple[str, ...], took_s: float) -> None:
    about = {
        "requirements": list(wanted),
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "build_s": round(took_s, 3),
    }
    (target / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _size_bytes(folder: Path) -> int:
    """What a folder takes up on disk; files that go away meanwhile do not count."""
    total, pending = 0, [str(folder)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            else:
                try:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                except FileNotFoundError:
                    continue
    return total
