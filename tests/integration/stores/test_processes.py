"""Several processes at one store: at the same time, and killed in the middle."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from somatize_worker.errors import MissingData
from somatize_worker.packing import Reference
from somatize_worker.stores.files import FileStore
from somatize_worker.stores.redis import RedisStore
from tests.integration.stores.support import Case, file_case
from tests.support.server import poll

KEY = hashlib.sha256(b"shared").digest()
REFERENCE = Reference(type="Cached", cache_key=KEY)


def test_a_writer_killed_in_the_middle_leaves_nothing_visible(big_case: Case) -> None:
    with big_case.child("put_slowly", KEY.hex(), 4 << 30) as writer:
        poll(big_case.raw, every_s=0.001, what="the writer has begun")
        writer.send_signal(signal.SIGKILL)
        out, _ = writer.communicate()
    assert out == "", "the writer had finished before it was killed"
    left = big_case.raw()
    assert left, "it left a part, as this test wants"
    assert all(re.search(r"\.tmp$|:\d+$", name) for name in left)
    assert big_case.store.find(KEY) is None
    with pytest.raises(MissingData):
        big_case.store.get(REFERENCE)

    big_case.store.put(np.ones(10), key=KEY)
    assert big_case.store.get(REFERENCE).sum() == 10
    if isinstance(big_case.store, RedisStore):
        big_case.age(10**9)  # parts without a head live for minutes, by the server's own clock
    else:
        assert big_case.store.sweep() == 0, "the writer might be alive"
        big_case.age(3_600)
        assert big_case.store.sweep() == 1
        assert len(big_case.raw()) == 1


def test_parts_of_a_killed_writer_expire_within_minutes(data_url: str) -> None:
    import redis

    from tests.integration.stores.support import server_case

    case = server_case(data_url)
    with case.child("put_slowly", KEY.hex(), 4 << 30) as writer:
        poll(case.raw, every_s=0.001, what="the writer has begun")
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    with redis.Redis.from_url(data_url) as client:
        assert all(0 < int(client.pttl(name)) <= 600_000 for name in case.raw())


def test_concurrent_writers_of_one_key_never_mix(case: Case) -> None:
    count = 100_000 if "part_bytes" in case.spec else 400_000
    writers = [case.child("put_at_the_signal", KEY.hex(), value, count) for value in (1.0, 2.0, 3.0, 4.0)]
    for writer in writers:
        assert writer.stdout is not None
        assert json.loads(writer.stdout.readline()) == "ready"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    poll(lambda: case.store.find(KEY), every_s=0, timeout_s=30)
    first = case.store.get(REFERENCE)
    assert first.shape == (count,)
    assert np.all(first == first[0])
    for writer in writers:
        out, _ = writer.communicate(timeout=60)
        assert json.loads(out) == "written"
        assert writer.returncode == 0

    last = case.store.get(REFERENCE)
    assert np.all(last == last[0])
    entries = [name for name in case.raw() if KEY.hex() in name]
    assert entries == list(case.raw()), "losers leave nothing"
    if isinstance(case.store, FileStore):
        assert len(entries) == 1
    else:
        assert last[0] == first[0], "the first stays"
        assert len({name.split(":")[3] for name in entries if name.count(":") > 2}) <= 1, "parts of one writer only"


def test_processes_map_the_same_pages(tmp_path: Path) -> None:
    """The kernel divides a page's share (Pss) among those who map it: two processes, half for each."""
    case = file_case(tmp_path / "store")
    reference = case.store.put(np.ones(4_000_000))
    here = case.store.get(reference)
    assert here.sum() == 4_000_000
    with case.child("hold_mapped", reference.fields) as other:
        assert other.stdout is not None
        assert json.loads(other.stdout.readline()) == 4_000_000
        pages = mapping(other.pid, reference.fields["path"])
        assert pages["Rss"] > 30_000
        assert pages["Pss"] < 0.6 * pages["Rss"]
        assert pages["Private_Clean"] + pages["Private_Dirty"] < 0.1 * pages["Rss"]
        other.communicate("end\n")
    assert here[-1] == 1


def mapping(pid: int, name: str) -> dict[str, int]:
    """Sizes in kB of a process's mapping of a file."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    block = next(part for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text) if name in part.partition("\n")[0])
    return {field: int(size) for field, size in re.findall(r"(\w+):\s+(\d+) kB", block)}
