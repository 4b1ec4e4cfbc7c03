"""All settings: ``SOMA_*`` environment variables, read once into one frozen object.

Nothing here is read at import time, and no other module reads the environment. :func:`table` feeds the
table in the README and ``somatize doctor``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from somatize_worker.errors import InvalidSettings

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """``"64k"``, ``"1.5g"``, ``"16 MiB"``, ``"1048576"`` as a number of bytes (binary multiples).

    Raises:
        ValueError: no such number, or a negative or endless one.
    """
    raw = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = raw[-1:] if raw[-1:] in _UNITS else ""
    return int(_parse_number(raw.removesuffix(unit)) * _UNITS[unit])


def _parse_number(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{text} is not a finite number of at least 0")
    return number


def _parse_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(f"{text} is negative")
    return count


def _parse_some(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(f"{text} is less than 1")
    return count


def _parse_period(text: str) -> float:
    seconds = _parse_number(text)
    if seconds == 0:
        raise ValueError("a period cannot be 0")
    return seconds


def _parse_words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def default_folder(name: str) -> Path:
    """A folder of this user's for data that may go: in shared memory where the machine has it."""
    shared = Path("/dev/shm")
    base = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"soma-{os.getuid()}" / name


def cache_folder(name: str) -> Path:
    """A folder of this user's for what is costly to make again (environments)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "somatize-worker" / name


def visible_gpus(environ: Mapping[str, str] | None = None) -> str | None:
    """CUDA's own ``CUDA_VISIBLE_DEVICES``, by which an operator gives a worker some of a machine's GPUs."""
    return (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")


#: What processes that run user code inherit. An allowlist, so that a secret in the worker's environment stays there.
_PASSED_ON = (
    "PATH HOME USER LOGNAME LANG LANGUAGE LC_* TZ TMPDIR XDG_CACHE_HOME "
    "PYTHONPATH PYTHONHASHSEED PYTHONPYCACHEPREFIX PYTHONDONTWRITEBYTECODE PYTHONWARNINGS "
    "LD_LIBRARY_PATH LD_PRELOAD DYLD_LIBRARY_PATH MALLOC_* SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE "
    "CUDA_* NVIDIA_* NCCL_* ROCR_* HIP_* OMP_* GOMP_* KMP_* OPENBLAS_* MKL_* NUMEXPR_* VECLIB_* HF_HOME TORCH_HOME"
).split()
_NEVER_PASSED_ON = ("SOMA_*", "CELERY_*")


def passed_on(more: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that a process running user code inherits: a fixed list and ``more`` (names or ``PREFIX_*``).

    ``SOMA_*`` and ``CELERY_*`` never pass, whatever ``more`` says: they name the broker and hold its secrets.
    """
    environ = os.environ if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if any(fnmatchcase(name, pattern) for pattern in (*_PASSED_ON, *more))
        and not any(fnmatchcase(name, pattern) for pattern in _NEVER_PASSED_ON)
    }


def inherited(*patterns: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of this process by name or ``PREFIX_*``, for a tool that the worker itself runs."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _setting(default: Any, help: str, parse: Any = str) -> Any:
    return field(default=default, metadata={"help": help, "parse": parse})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be set. Field ``x_y`` is the variable ``SOMA_X_Y``; units are in the names."""

    redis_url: str = _setting("redis://127.0.0.1:6379/0", "the Redis or Valkey server")
    store: str = _setting(
        "", "where large values go: `file:///path`, or `redis`; default: a folder of yours in shared memory"
    )
    worker_id: str = _setting("", "a worker's own id; default: made of host name and process id")
    inline_limit_bytes: int = _setting(128 << 10, "a larger value goes to the store as a reference", parse_bytes)
    lease_s: float = _setting(
        6.0, "a worker that does not renew its lease for so long is taken for dead", _parse_period
    )
    max_attempts: int = _setting(3, "a plan whose worker dies so often fails", _parse_some)
    plan_timeout_s: float = _setting(0.0, "deadline for one run of a plan; 0: none", _parse_number)
    grace_s: float = _setting(30.0, "how long a worker told to stop lets its plans finish", _parse_number)
    result_ttl_s: float = _setting(86_400.0, "how long finished records, events and logs are kept", _parse_period)
    data_ttl_s: float = _setting(172_800.0, "how long stored data is kept after its last use", _parse_period)
    event_log_limit: int = _setting(20_000, "events kept for each plan", _parse_some)
    log_limit_bytes: int = _setting(1 << 20, "printed output kept for each plan (the tail)", parse_bytes)
    memory_limit_bytes: int = _setting(0, "memory that one host and its children may use; 0: no limit", parse_bytes)
    host_ready_timeout_s: float = _setting(60.0, "a host that is not ready by then is given up", _parse_period)
    spare_hosts: int = _setting(1, "started hosts that wait for each environment in use", _parse_count)
    idle_hosts: int = _setting(4, "hosts kept warm for filters seen before", _parse_count)
    host_env: tuple[str, ...] = _setting(
        (), "more environment variables that user code may see, by name or `PREFIX_*`", _parse_words
    )
    max_plan_depth: int = _setting(100, "how deep a plan may be nested", _parse_some)
    env_folder: str = _setting("", "where Python environments are built; default: in your cache folder")
    env_limit_bytes: int = _setting(20 << 30, "least recently used environments go beyond this size", parse_bytes)
    env_index_url: str = _setting("", "package index for environments; default: uv's own")
    env_allow: tuple[str, ...] = _setting((), "requirement kinds allowed beside names: `urls`, `paths`", _parse_words)
    job_folder: str = _setting("", "where jobs run; default: a folder of yours in the folder for temporary files")
    job_cores: int = _setting(0, "processor cores that one job may use; 0: all", _parse_count)
    job_timeout_s: float = _setting(0.0, "deadline for one Python job; 0: none", _parse_number)
    job_output_limit_bytes: int = _setting(4 << 20, "a job's printed output kept (head and tail)", parse_bytes)
    job_files_limit_bytes: int = _setting(64 << 20, "size of a job's source files, together", parse_bytes)
    job_files_limit: int = _setting(2_000, "number of a job's source files", _parse_some)
    job_outputs_limit_bytes: int = _setting(10 << 30, "size of what a job leaves under outputs/", parse_bytes)
    job_outputs_limit: int = _setting(10_000, "number of files that a job leaves under outputs/", _parse_some)
    job_processes_limit: int = _setting(512, "processes a job may have at once", _parse_some)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from ``SOMA_*`` variables; keyword arguments win.

        Raises:
            InvalidSettings: a variable whose text does not parse (which one, what it should be).
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for spec in fields(cls):
            text = environ.get(variable(spec.name))
            if text is None or text == "" or spec.name in overrides:
                continue
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except (ValueError, KeyError):
                raise InvalidSettings(
                    f"{variable(spec.name)}={text!r} is not usable: {spec.metadata['help']} (default {spec.default!r})",
                    variable=variable(spec.name),
                ) from None
        return cls(**values, **overrides)

    def to_env(self) -> dict[str, str]:
        """The variables that give another process these settings; those at their default are left out."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        changed = {spec.name: values[spec.name] for spec in fields(self) if values[spec.name] != spec.default}
        return {
            variable(name): " ".join(value) if isinstance(value, tuple) else str(value)
            for name, value in changed.items()
        }

    @property
    def store_url(self) -> str:
        """The store in use: the setting, or a folder of this user's in shared memory."""
        return self.store or f"file://{default_folder('store')}"


def variable(name: str) -> str:
    """The environment variable behind a field: ``redis_url`` is ``SOMA_REDIS_URL``."""
    return f"SOMA_{name.upper()}"


def table() -> list[tuple[str, str, str]]:
    """Every setting as (variable, default as one would write it, meaning)."""
    return [(variable(spec.name), _written(spec), spec.metadata["help"]) for spec in fields(Settings)]


def _written(spec: Field[Any]) -> str:
    """A setting's default as the text of a variable: ``128k``, ``6``; empty for none."""
    default: Any = spec.default
    if isinstance(default, tuple):
        return " ".join(default)
    if spec.metadata["parse"] is parse_bytes and default:
        unit, size = max((item for item in _UNITS.items() if default % item[1] == 0), key=lambda item: item[1])
        return f"{default // size}{unit}"
    return f"{default:g}" if isinstance(default, float) else str(default)
