"""Running uv: which variables it sees, how its words come back, how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from somatize_worker import orphan
from somatize_worker.errors import EnvironmentFailed, PlanCancelled
from somatize_worker.settings import inherited

_POLL_S: Final = 0.02
_STDERR_LIMIT_CHARS: Final = 20_000
_NOISE: Final = ("Using Python ", "Using CPython ", "Creating virtual environment ", "Activate with: ")

# What decides where packages come from, and how the network is reached. Anything that could send uv to another
# environment, another Python or other requirements (UV_PYTHON, UV_SYSTEM_PYTHON, UV_OVERRIDE, ...) stays out.
INDEX_VARIABLES: Final = (
    *("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX"),
    *("UV_INDEX_STRATEGY", "UV_PRERELEASE", "UV_RESOLUTION", "UV_EXCLUDE_NEWER", "UV_TORCH_BACKEND"),
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
)
_PASSED_ON: Final = (
    *INDEX_VARIABLES,
    *("UV_INDEX_*_USERNAME", "UV_INDEX_*_PASSWORD", "UV_KEYRING_PROVIDER", "UV_INSECURE_HOST", "UV_CACHE_DIR"),
    *("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES", "UV_OFFLINE", "UV_CONFIG_FILE"),
    *("UV_CONCURRENT_DOWNLOADS", "UV_CONCURRENT_BUILDS", "UV_CONCURRENT_INSTALLS"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HOME", "PATH", "TMPDIR", "LANG", "LC_*", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NETRC", "USER", "LOGNAME"),
    *("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "LD_LIBRARY_PATH", "PKG_CONFIG_PATH", "CUDA_HOME"),
)


def environment() -> dict[str, str]:
    """The variables uv gets: the machine's index, certificate and proxy settings, and nothing of the worker's own.

    pip's index variables stand in where uv's are not set; uv does not read pip.conf.
    """
    passed = inherited(*_PASSED_ON)
    default, extra = passed.pop("PIP_INDEX_URL", ""), passed.pop("PIP_EXTRA_INDEX_URL", "")
    certificates = passed.pop("PIP_CERT", "")
    if default and not passed.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}:
        passed["UV_DEFAULT_INDEX"] = default
    if extra and not passed.keys() & {"UV_INDEX", "UV_EXTRA_INDEX_URL"}:
        passed["UV_INDEX"] = extra
    if certificates:
        passed.setdefault("SSL_CERT_FILE", certificates)
    if "UV_NATIVE_TLS" not in passed:
        passed.setdefault("UV_SYSTEM_CERTS", "1")  # trust what this machine trusts, as pip does
    return {**passed, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def run(
    arguments: Sequence[str],
    *,
    log: Path,
    progress: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Run uv to its end, handing on each line it prints.

    Args:
        arguments: the command line after ``uv``.
        log: where its standard error goes; its folder is the working directory.
        progress: called with each line.
        cancelled: asked many times a second; uv and everything it started is killed once it says True.

    Raises:
        EnvironmentFailed: uv is not there, or it failed (its own words).
        PlanCancelled: ``cancelled`` said so.
    """
    with log.open("wb") as errors, log.open("rb") as lines:
        process = subprocess.Popen(
            # Ends with this worker, however that ends, so that a dead worker's build does not write on.
            [sys.executable, "-I", "-S", orphan.__file__, str(os.getpid()), find(), *arguments],
            cwd=log.parent,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        try:
            _follow(process, lines.readline, progress, cancelled)
        finally:
            _kill_group(process)
    if process.returncode != 0:
        raise EnvironmentFailed(_words(log) or f"uv ended with exit status {process.returncode} and said nothing")


def find() -> str:
    """The uv program of the ``uv`` package.

    Raises:
        EnvironmentFailed: the package is not installed, or its program is gone.
    """
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError) as error:
        raise EnvironmentFailed(
            f"the program uv, which builds environments, is not there ({error}); reinstall the package `uv`"
        ) from None


def _follow(
    process: subprocess.Popen[bytes],
    readline: Callable[[], bytes],
    progress: Callable[[str], None] | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    partial = b""
    while True:
        ended = process.poll() is not None
        while piece := readline():
            partial += piece
            if partial.endswith(b"\n"):
                line, partial = partial.decode(errors="replace").strip(), b""
                if progress and line and not line.startswith(_NOISE):
                    progress(line)
        if ended:
            return
        if cancelled and cancelled():
            raise PlanCancelled("cancelled while its environment was being built")
        time.sleep(_POLL_S)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Build back ends live in uv's session; on success none is left and this does nothing."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _words(log: Path) -> str:
    """What uv said, without the lines that name our folders; the tail, if it said very much."""
    lines = log.read_text(errors="replace").splitlines()
    text = "\n".join(line for line in lines if not line.startswith(_NOISE)).strip()
    return text if len(text) <= _STDERR_LIMIT_CHARS else f"[…]\n{text[-_STDERR_LIMIT_CHARS:]}"
