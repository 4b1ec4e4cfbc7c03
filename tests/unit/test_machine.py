"""What a worker says of its machine: the container's share, not the whole host."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from somatize_worker.worker import machine
from somatize_worker.worker.cgroups import ControlGroup
from somatize_worker.worker.gpus import Gpus

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""


def fake_root(folder: Path, *, mounts: str, groups: str, files: dict[str, str]) -> ControlGroup:
    """A control group read from a file system tree written here, as the kernel would show it."""
    proc = {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}
    for name, text in {**proc, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return ControlGroup(folder)


def test_version_2_takes_the_tightest_limit_up_the_tree(tmp_path: Path) -> None:
    group = fake_root(
        tmp_path,
        mounts=V2_MOUNT,
        groups="0::/user.slice/worker",
        files={
            "user.slice/worker/cpu.max": "300000 100000",
            "user.slice/cpu.max": "150000 100000",
            "user.slice/worker/cpu.stat": "usage_usec 2500000\nuser_usec 1",
            "user.slice/worker/memory.max": "max",
            "user.slice/worker/memory.current": "1000",
            "user.slice/memory.max": "4000",
            "user.slice/memory.current": "3000",
            "user.slice/memory.stat": "anon 1\ninactive_file 1000",
        },
    )
    assert group.cpu_cores() == 1.5
    assert group.cpu_seconds() == 2.5
    assert group.memory_bytes() == 4000
    assert group.memory_usage() == 0.5


def test_version_2_in_a_container_of_its_own_namespace(tmp_path: Path) -> None:
    files = {"cpu.max": "50000 100000", "memory.max": "2048", "memory.current": "4096", "cpu.stat": "usage_usec 1"}
    group = fake_root(tmp_path, mounts=V2_MOUNT, groups="0::/", files=files)
    assert group.cpu_cores() == 0.5
    assert machine.usable_cores(group) == 1
    assert machine.usable_memory_bytes(group) == 2048
    assert group.memory_usage() == 1.0


@pytest.mark.parametrize("inside", [True, False], ids=["mounted-own-group", "mounted-whole-tree"])
def test_version_1(tmp_path: Path, inside: bool) -> None:
    path = "/docker/0123"
    under = "" if inside else "docker/0123/"
    group = fake_root(
        tmp_path,
        mounts=V1_MOUNTS.format(root=path if inside else "/"),
        groups=f"9:name=systemd:{path}\n4:memory:{path}\n2:cpu,cpuacct:{path}\n0::/",
        files={
            f"cpu,cpuacct/{under}cpu.cfs_quota_us": "250000",
            f"cpu,cpuacct/{under}cpu.cfs_period_us": "100000",
            f"cpu,cpuacct/{under}cpuacct.usage": "7000000000",
            f"memory/{under}memory.limit_in_bytes": "1000",
            f"memory/{under}memory.usage_in_bytes": "900",
            f"memory/{under}memory.stat": "cache 1\ntotal_inactive_file 400",
        },
    )
    assert group.cpu_cores() == 2.5
    assert group.cpu_seconds() == 7.0
    assert group.memory_bytes() == 1000
    assert group.memory_usage() == 0.5


def test_a_path_named_from_outside_the_container(tmp_path: Path) -> None:
    """Docker with version 1: the path is the host's, the mount shows only the own group, under another root."""
    group = fake_root(
        tmp_path,
        mounts=V1_MOUNTS.format(root="/docker/9999"),
        groups="4:memory:/docker/0123/nested",
        files={"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "10"},
    )
    assert group.memory_bytes() == 1000


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000", "memory.max": "max"},
        {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "memory.limit_in_bytes": "9223372036854771712"},
    ],
    ids=["nothing", "version-2", "version-1"],
)
def test_no_limit_is_the_whole_machine(tmp_path: Path, files: dict[str, str]) -> None:
    group = fake_root(tmp_path, mounts=V2_MOUNT, groups="0::/", files=files)
    assert (group.cpu_cores(), group.memory_bytes(), group.memory_usage()) == (None, None, None)
    assert machine.usable_cores(group) == len(os.sched_getaffinity(0))
    assert machine.usable_memory_bytes(group) == psutil.virtual_memory().total


def test_no_proc_at_all(tmp_path: Path) -> None:
    group = ControlGroup(tmp_path)
    assert (group.cpu_cores(), group.cpu_seconds(), group.memory_bytes()) == (None, None, None)


def test_this_machine() -> None:
    told = machine.capabilities(["gpu", "training"])
    assert told["tags"] == ["gpu", "training"]
    assert 1 <= told["cpu_cores"] <= (os.cpu_count() or 1)
    assert 0 < told["ram_bytes"] <= psutil.virtual_memory().total
    version = ".".join(map(str, sys.version_info[:3]))
    assert told["python_envs"] == [f"Python {version} ({sys.executable})"]
    assert list(machine.capabilities([])) == list(told)


def test_load_of_this_machine_follows_work() -> None:
    meter = machine.Meter(gpus=Gpus([]))
    spin_until = time.monotonic() + 1.0
    while time.monotonic() < spin_until:
        pass
    load = meter.load(active_plans=2, queue_depth=5)
    assert load["cpu_usage"] >= 0.5 / machine.usable_cores(ControlGroup())
    assert 0 < load["memory_usage"] <= 1
    assert load["gpu_usage"] == []
    assert (load["active_plans"], load["queue_depth"]) == (2, 5)
    assert load["timestamp"].endswith("Z")


def test_load_of_a_container_is_of_its_quota(tmp_path: Path) -> None:
    files = {"cpu.max": "100000 100000", "cpu.stat": "usage_usec 0", "memory.max": "1000", "memory.current": "250"}
    meter = machine.Meter(group=fake_root(tmp_path, mounts=V2_MOUNT, groups="0::/", files=files), gpus=Gpus([]))
    started = time.monotonic()
    while time.monotonic() - started < 0.6:
        time.sleep(0.1)
    half_us = int((time.monotonic() - started) * 1e6 / 2)
    (tmp_path / "sys/fs/cgroup/cpu.stat").write_text(f"usage_usec {half_us}\n")
    assert 0.2 < meter.cpu_usage() <= 0.55
    assert meter.memory_usage() == 0.25


def test_two_looks_at_once_tell_the_same() -> None:
    meter = machine.Meter(gpus=Gpus([]))
    assert meter.cpu_usage() == meter.cpu_usage()


class Driver:
    """Stands in for NVIDIA's driver, which few test machines have: pynvml's functions over a list of GPUs."""

    NVMLError = pynvml.NVMLError
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported

    def __init__(self, *gpus: dict[str, Any], failure: int | None = None) -> None:
        self.gpus = gpus
        self.failure = failure

    def nvmlInit(self) -> None:
        if self.failure is not None:
            raise pynvml.NVMLError(self.failure)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:
        return str(handle["uuid"])

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:
        return str(handle["name"])

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(used=handle["used"], total=handle["total"])

    def nvmlDeviceGetUtilizationRates(self, handle: dict[str, Any]) -> SimpleNamespace:
        if isinstance(handle["busy"], int):
            return SimpleNamespace(gpu=handle["busy"])
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED if handle["busy"] else pynvml.NVML_ERROR_GPU_IS_LOST)


def gpu(number: int, busy: Any = 10) -> dict[str, Any]:
    return {"uuid": f"GPU-{number}{number}", "name": f"H{number}", "used": 20, "total": 80, "busy": busy}


def test_gpus() -> None:
    found = Gpus.open(None, Driver(gpu(0, 88), gpu(1, "not told"), gpu(2, None)))
    assert found.describe() == [{"name": f"H{number}", "memory_bytes": 80} for number in range(3)]
    assert found.usage() == [0.88, 0.25, 1.0]


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["H0", "H1", "H2"]),
        ("", []),
        ("-1", []),
        ("2,0", ["H2", "H0"]),
        ("1,7,0", ["H1"]),
        ("0,0", ["H0"]),
        ("GPU-11", ["H1"]),
        (" GPU-2 , 0", ["H2", "H0"]),
        ("GPU-", []),
        ("MIG-123", []),
    ],
)
def test_visible_gpus(visible: str | None, names: list[str]) -> None:
    found = Gpus.open(visible, Driver(gpu(0), gpu(1), gpu(2)))
    assert [one["name"] for one in found.describe()] == names


@pytest.mark.parametrize("failure", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_driver_is_silent(failure: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert Gpus.open(None, Driver(gpu(0), failure=failure)).describe() == []
    assert caplog.text == ""


def test_a_broken_driver_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(gpu(0), failure=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert Gpus.open(None, driver).describe() == []
    assert "no GPU is announced" in caplog.text


def test_the_real_driver_interface_or_none() -> None:
    """On a machine without the driver: empty. With it, as many readings as GPUs."""
    found = Gpus.open()
    assert len(found.usage()) == len(found.describe())
    assert all(hasattr(pynvml, name) for name in vars(Driver) if name.startswith(("nvml", "NVML")))
