"""Environments built for real, from the package index, by threads and processes at once, and through crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from somatize_worker.errors import EnvironmentFailed, PlanCancelled
from somatize_worker.hosts import environments as module
from somatize_worker.hosts.environments import Environments
from somatize_worker.hosts.recipe import environment_key
from somatize_worker.settings import Settings
from tests.support.server import poll


def make(folder: Path, **settings: Any) -> Environments:
    return Environments(Settings(env_folder=str(folder), **settings))


def run(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def installed(python: Path) -> list[str]:
    listed = "import importlib.metadata as m; print(*sorted(f'{d.name}=={d.version}' for d in m.distributions()))"
    return run(python, listed).split()


def built(folder: Path) -> list[str]:
    """Keys of the environments that are there."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def unfinished(folder: Path) -> list[str]:
    """Names of folders that are being built or removed, or were left so."""
    return [path.name for path in folder.iterdir() if path.name.startswith((".building-", ".removing-"))]


def test_two_versions_of_one_package_side_by_side(env_folder: Path) -> None:
    environments = make(env_folder)
    with environments.python_for("six==1.16.0") as new, environments.python_for("six==1.15.0") as old:
        assert run(new.python, "import six; print(six.__version__)") == "1.16.0"
        assert run(old.python, "import six; print(six.__version__)") == "1.15.0"
        assert new.key != old.key


def test_nothing_but_what_was_asked_for_is_installed(env_folder: Path) -> None:
    with make(env_folder).python_for("six==1.16.0") as environment:
        assert installed(environment.python) == ["six==1.16.0"]
        assert run(environment.python, "import sys; print(sys.prefix)") == str(environment.python.parent.parent)
    with make(env_folder).python_for("") as bare:
        assert installed(bare.python) == []


def test_equal_needs_share_one_and_reuse_is_quick(tmp_path: Path) -> None:
    environments = make(tmp_path)
    said: list[str] = []
    with environments.python_for("six==1.16.0\nidna\n", said.append) as one:
        assert any("six==1.16.0" in line for line in said)
        said.clear()
        started = time.perf_counter()
        with make(tmp_path).python_for(["# same", "IDNA", "six == 1.16.0"], said.append) as other:
            took_s = time.perf_counter() - started
        assert (one.python, one.key) == (other.python, other.key)
        assert said == []
        assert took_s < 0.5
    assert built(tmp_path) == [one.key]
    with environments.python_for("six==1.16.0") as changed:
        assert changed.key != one.key


def test_scripts_work_where_the_environment_finally_is(env_folder: Path) -> None:
    with make(env_folder).python_for("idna>=3.11") as environment:
        script = environment.python.parent / "idna"
        done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "usage" in done.stdout.lower()) == (0, True), done.stderr


def test_the_python_is_the_workers_own(env_folder: Path) -> None:
    with make(env_folder).python_for("") as environment:
        assert run(environment.python, "import sys; print(sys.version)") == sys.version.replace("\n", "").strip()


def test_a_package_for_another_python_fails_and_does_not_bring_that_python(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "future"\nversion = "1.0"\nrequires-python = ">=3.99"\n'
        '[build-system]\nrequires = ["flit_core>=3"]\nbuild-backend = "flit_core.buildapi"\n'
    )
    with pytest.raises(EnvironmentFailed, match=r"Python\s*>=\s*3\.99"):
        make(tmp_path / "envs", env_allow=("paths",)).python_for(str(project))
    assert built(tmp_path / "envs") == []


def test_a_failed_build_says_what_uv_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed) as caught:
        make(tmp_path).python_for("six==99.0")
    assert "there is no version of six==99.0" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert built(tmp_path) == unfinished(tmp_path) == []
    with make(tmp_path).python_for("six==1.16.0"):
        pass


def test_refused_requirements_start_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="SOMA_ENV_ALLOW=urls"):
        make(tmp_path / "none").python_for("https://example.org/six.whl")
    assert not (tmp_path / "none").exists()


def test_a_local_path_where_it_is_allowed_and_rebuilt_when_it_changes(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core>=3"]\nbuild-backend = "flit_core.buildapi"\n'
        '[project]\nname = "mine"\nversion = "1.0"\ndescription = "x"\n'
    )
    (project / "mine.py").write_text("VALUE = 1\n")
    environments = make(tmp_path / "envs", env_allow=("paths",))
    with environments.python_for(str(project)) as first:
        assert run(first.python, "import mine; print(mine.VALUE)") == "1"
    (project / "mine.py").write_text("VALUE = 22\n")
    with environments.python_for(str(project)) as second:
        assert run(second.python, "import mine; print(mine.VALUE)") == "22"
    with pytest.raises(EnvironmentFailed, match="not on this worker's machine"):
        environments.python_for("/no/such/project")


def test_another_index_is_used_and_makes_another_environment(tmp_path: Path) -> None:
    environments = make(tmp_path, env_index_url="http://127.0.0.1:1/simple")
    assert environment_key(("six",)) != environment_key(("six",), "http://127.0.0.1:1/simple")
    stop = threading.Event()
    said: list[str] = []

    def ask() -> None:
        try:
            environments.python_for("six==1.16.0", cancelled=stop.is_set)
        except (EnvironmentFailed, PlanCancelled) as error:
            said.append(error.message)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    stop.set()
    assert "127.0.0.1:1" in said[0]


def test_base_packages_for_filter_hosts(env_folder: Path) -> None:
    environments = make(env_folder)
    with environments.python_for("", base=True) as own:
        assert own.python == Path(sys.executable)
    with environments.python_for("six==1.16.0", base=True) as environment:
        names = {line.partition("==")[0] for line in installed(environment.python)}
        assert names == {"cloudpickle", "msgpack", "numpy", "six"}
        import cloudpickle

        assert run(environment.python, "import cloudpickle; print(cloudpickle.__version__)") == cloudpickle.__version__
    environments.keep_only([])


def test_a_base_package_that_the_user_names_stands(env_folder: Path) -> None:
    environments = make(env_folder)
    with environments.python_for("cloudpickle==3.0.0", base=True) as environment:
        assert run(environment.python, "import cloudpickle; print(cloudpickle.__version__)") == "3.0.0"
    environments.keep_only([])


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_twenty_threads_ask_for_the_same_new_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = count_builds(monkeypatch)
    environments = make(tmp_path)
    barrier = threading.Barrier(20)

    def ask(_: int) -> str:
        barrier.wait()
        with environments.python_for("six==1.16.0") as environment:
            return run(environment.python, "import six; print(six.__version__)")

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == ["1.16.0"] * 20
    assert len(builds) == 1


def test_processes_ask_for_the_same_new_environment(tmp_path: Path) -> None:
    code = (
        "import sys; from somatize_worker.hosts.environments import Environments; "
        "from somatize_worker.settings import Settings; said = []\n"
        "environment = Environments(Settings(env_folder=sys.argv[1])).python_for('six==1.16.0', said.append)\n"
        "print(environment.python, any('+ six' in line for line in said))"
    )
    askers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = [asker.communicate(timeout=90)[0].split() for asker in askers]
    assert len({python for python, _ in answers}) == 1
    assert sorted(built_it for _, built_it in answers) == ["False"] * 5 + ["True"]


def test_those_who_wait_for_a_build_share_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = count_builds(monkeypatch)
    environments = make(tmp_path)
    barrier = threading.Barrier(8)

    def ask(_: int) -> str:
        barrier.wait()
        try:
            environments.python_for("six==99.0")
        except EnvironmentFailed as error:
            return error.message
        return "built"

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert len(answers) == 1
    assert "six==99.0" in answers.pop()
    assert len(builds) == 1
    with pytest.raises(EnvironmentFailed):
        environments.python_for("six==99.0")
    assert len(builds) == 2


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Watch (and do not change) the builds of this process."""
    builds: list[str] = []
    build = Environments._build

    def counted(self: Environments, key: str, *arguments: Any) -> None:
        builds.append(key)
        build(self, key, *arguments)

    monkeypatch.setattr(Environments, "_build", counted)
    return builds


# ── stopped, killed, broken ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The URL of an index that takes connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/simple"


def uv_processes(folder: Path) -> list[int]:
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ()) and process.pid != os.getpid()
    ]


def test_cancelling_ends_the_build_and_uv(tmp_path: Path, silent_index: str) -> None:
    environments = make(tmp_path, env_index_url=silent_index)
    stop = threading.Event()
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            environments.python_for("six", cancelled=stop.is_set)
        except BaseException as error:
            ended.append(error)

    asking = [threading.Thread(target=ask) for _ in range(2)]  # one builds, one waits
    for thread in asking:
        thread.start()
    poll(lambda: uv_processes(tmp_path), what="uv runs")
    stop.set()
    for thread in asking:
        thread.join(2)
        assert not thread.is_alive()
    assert [type(error) for error in ended] == [PlanCancelled, PlanCancelled]
    assert uv_processes(tmp_path) == []
    assert built(tmp_path) == unfinished(tmp_path) == []


def test_a_builder_that_was_killed_leaves_nothing_half_built(tmp_path: Path, silent_index: str) -> None:
    code = (
        "import sys; from somatize_worker.hosts.environments import Environments; "
        "from somatize_worker.settings import Settings\n"
        "Environments(Settings(env_folder=sys.argv[1], env_index_url=sys.argv[2])).python_for('six')"
    )
    builder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), silent_index])
    poll(lambda: uv_processes(tmp_path) and unfinished(tmp_path), timeout_s=30, what="the build goes on")
    orphans = [pid for pid in uv_processes(tmp_path) if pid != builder.pid]
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert built(tmp_path) == []
    assert unfinished(tmp_path) != []
    with make(tmp_path).python_for("six==1.16.0") as environment:
        assert run(environment.python, "import six; print(six.__version__)") == "1.16.0"
    assert unfinished(tmp_path) == []


def test_kills_at_any_moment_never_show_a_half_built_environment(tmp_path: Path) -> None:
    code = (
        "import sys; from somatize_worker.hosts.environments import Environments; "
        "from somatize_worker.settings import Settings\n"
        "Environments(Settings(env_folder=sys.argv[1])).python_for('six==1.16.0 \\n idna')\nprint('built')"
    )
    for delay_ms in range(0, 300, 20):
        builder = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        poll(lambda: unfinished(tmp_path) or built(tmp_path), timeout_s=30, every_s=0.001, what="the build begins")
        time.sleep(delay_ms / 1000)
        builder.kill()
        builder.wait()
        for key in built(tmp_path):
            assert (tmp_path / key / module.DESCRIPTION).is_file()
            assert run(tmp_path / key / "bin" / "python", "import six, idna; print('whole')") == "whole"
            (tmp_path / key).rename(tmp_path / f".removing-{key}-test")
    with make(tmp_path).python_for("six==1.16.0\nidna") as environment:
        assert run(environment.python, "import six, idna; print('whole')") == "whole"
    assert unfinished(tmp_path) == []


def test_an_environment_whose_python_is_gone_is_built_anew(tmp_path: Path) -> None:
    environments = make(tmp_path)
    with environments.python_for("six==1.16.0") as environment:
        python = environment.python
    python.unlink()
    python.symlink_to("/no/such/python")
    with environments.python_for("six==1.16.0") as again:
        assert run(again.python, "import six; print(six.__version__)") == "1.16.0"


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailed, match="SOMA_ENV_FOLDER"):
        make(tmp_path / "file" / "envs").python_for("six==1.16.0")


# ── the size limit ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_least_recently_used_go_and_one_in_use_stays(tmp_path: Path) -> None:
    environments = make(tmp_path, env_limit_bytes=1)
    used = make(tmp_path, env_limit_bytes=1 << 40).python_for("six==1.14.0")
    with environments.python_for("six==1.16.0") as newest:
        assert built(tmp_path) == sorted([used.key, newest.key])
        with environments.python_for("six==1.15.0") as third:
            assert built(tmp_path) == sorted([used.key, newest.key, third.key])
    assert environments.evict() != []
    assert built(tmp_path) == [used.key]
    assert run(used.python, "import six; print(six.__version__)") == "1.14.0"
    used.release()
    assert environments.evict() == [used.key]
    assert built(tmp_path) == unfinished(tmp_path) == []


def test_eviction_takes_the_oldest_first_and_no_more_than_needed(tmp_path: Path) -> None:
    roomy = make(tmp_path, env_limit_bytes=1 << 40)
    keys = []
    for version in ("1.14.0", "1.15.0", "1.16.0"):
        with roomy.python_for(f"six=={version}") as environment:
            keys.append(environment.key)
    now = time.time()
    for age, key in zip((300, 100, 200), keys, strict=True):
        os.utime(tmp_path / f"{key}.use", (now - age, now - age))
    sizes = [module._size_bytes(tmp_path / key) for key in keys]
    assert make(tmp_path, env_limit_bytes=sum(sizes) - 1).evict() == [keys[0]]
    assert make(tmp_path, env_limit_bytes=sizes[1]).evict() == [keys[2]]
    assert built(tmp_path) == [keys[1]]


def test_one_that_another_process_uses_stays_until_it_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from somatize_worker.hosts.environments import Environments; "
        "from somatize_worker.settings import Settings\n"
        "held = Environments(Settings(env_folder=sys.argv[1])).python_for('six==1.16.0')\n"
        "print(held.key, flush=True); time.sleep(60)"
    )
    user = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    key = user.stdout.readline().strip()
    environments = make(tmp_path, env_limit_bytes=1)
    assert environments.evict() == []
    user.kill()
    user.communicate()
    assert environments.evict() == [key]


def test_hosts_keep_their_environments_until_told(tmp_path: Path) -> None:
    environments = make(tmp_path, env_limit_bytes=1)
    with environments.python_for("six==1.16.0", base=True) as environment:
        environments.keep_only([environment.python])
    assert environments.evict() == []
    environments.keep_only([])
    assert environments.evict() == [environment.key]


def test_the_description_tells_what_is_in_it(env_folder: Path) -> None:
    with make(env_folder).python_for("six==1.16.0") as environment:
        about = json.loads((environment.python.parent.parent / module.DESCRIPTION).read_text())
    assert about["requirements"] == ["six==1.16.0"]
    assert about["python"] == ".".join(map(str, sys.version_info[:3]))
