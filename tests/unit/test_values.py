"""Python objects to plain data, facts about plain data, and fitted states."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pytest
import scipy.sparse

from somatize_worker import packing, values
from somatize_worker.errors import FilterNotLoadable, Unrepresentable
from somatize_worker.packing import Reference
from somatize_worker.values import PICKLE_MAGIC, load_state, nbytes, pickle_state, summary, to_plain

ARRAY = np.arange(6.0).reshape(2, 3)


class Pair(NamedTuple):
    left: int
    right: Any


class Text(str):
    pass


class Level(enum.IntEnum):
    HIGH = 3


class Color(enum.Enum):
    RED = "red"


class Name(enum.StrEnum):
    BOB = "bob"


@pytest.mark.parametrize(
    "plain",
    [
        None,
        True,
        3,
        2**100,
        1.5,
        float("nan"),
        "text",
        "größe",
        b"raw",
        [],
        {},
        [1, 2.5, None, True],
        ["a", "ü"],
        {"a": [ARRAY, {"b": b"x"}], "c": None},
        ARRAY,
        np.array(1.0),
        np.zeros((0, 3)),
        np.array(["ab", "c"]),
        np.array([1j]),
        np.array([1, 2], ">i4"),
        Reference(type="Local", path="p"),
        {"a": Reference(type="Local", path="p")},
    ],
    ids=lambda plain: str(plain)[:20],
)
def test_plain_data_is_returned_as_it_is(plain: Any) -> None:
    assert to_plain(plain) is plain
    packing.unpack(packing.pack(plain))


@pytest.mark.parametrize(
    "obj, plain",
    [
        ((1, 2.5), [1, 2.5]),
        ({"a": (1, ("b", None))}, {"a": [1, ["b", None]]}),
        ([1, [(2,)], "a"], [1, [[2]], "a"]),
        (Pair(1, Pair(2, None)), [1, [2, None]]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (Text("t"), "t"),
        ({Text("k"): Text("v")}, {"k": "v"}),
        (Level.HIGH, 3),
        (Name.BOB, "bob"),
        ([Level.HIGH], [3]),
        (np.str_("s"), "s"),
        (np.bytes_(b"s"), b"s"),
    ],
    ids=lambda obj: str(obj)[:30],
)
def test_what_becomes_plain(obj: Any, plain: Any) -> None:
    made = to_plain(obj)
    assert made == plain
    assert json_types(made) == json_types(plain)


def json_types(plain: Any) -> Any:
    """The exact types in plain data, which ``==`` does not look at."""
    if isinstance(plain, dict):
        return dict, [(type(key), json_types(item)) for key, item in plain.items()]
    if isinstance(plain, list):
        return type(plain), [json_types(item) for item in plain]
    return type(plain)


@pytest.mark.parametrize(
    "scalar", [np.float64(1.5), np.float32(1.5), np.int8(-1), np.uint64(2**63), np.bool_(True), np.complex64(1j), 1j]
)
def test_scalars_of_numpy_become_arrays_without_dimensions(scalar: Any) -> None:
    made = to_plain(scalar)
    assert type(made) is np.ndarray
    assert made.shape == ()
    assert made == scalar
    assert made.dtype == np.asarray(scalar).dtype
    assert to_plain({"loss": scalar})["loss"] == made


def test_nothing_is_changed_in_place() -> None:
    obj: dict[str, Any] = {"a": [(1, 2), 3], "b": {"c": Text("t")}, "d": [1]}
    made = to_plain(obj)
    assert type(obj["a"][0]) is tuple
    assert type(obj["b"]["c"]) is Text
    assert made["d"] is obj["d"]


def test_array_subclasses_share_the_numbers(tmp_path: Path) -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0]])
    mapped = np.memmap(tmp_path / "file", dtype=np.float32, mode="w+", shape=(2, 2))
    for array in (matrix, mapped):
        made = to_plain(array)
        assert type(made) is np.ndarray
        assert np.shares_memory(made, array)


class Frame:
    """Stands for a class of a library that is not installed here."""


Frame.__module__ = "pandas.core.frame"


@dataclasses.dataclass
class Record:
    x: int = 1


def recursive() -> list[Any]:
    inner: list[Any] = ["x"]
    inner.append(inner)
    return inner


@pytest.mark.parametrize(
    "obj, what, where, remedy",
    [
        (object(), "an object of type object", "", "return numpy arrays"),
        ({"a": [0, {"b": object()}]}, "an object of type object", "['a'][1]['b']", "numpy arrays"),
        (({"a": 1}, {2}), "set", "[1]", "sorted(x)"),
        ({1: 2}, "a dict with the key 1 of type int", "", "keys text"),
        ({"x": {(1, 2): 3}}, "key (1, 2) of type tuple", "['x']", "keys text"),
        (Color.RED, "Color", "", ".value"),
        (Frame(), "pandas.core.frame.Frame", "", ".to_numpy()"),
        (scipy.sparse.csr_matrix((2, 2)), "scipy.sparse", "", ".toarray()"),
        (Record(), "Record", "", "dataclasses.asdict"),
        (datetime.date(2026, 1, 1), "datetime.date", "", ".isoformat()"),
        ([decimal.Decimal(1)], "decimal.Decimal", "[0]", "float(x)"),
        (Path("/x"), "PosixPath", "", "str(path)"),
        ((n for n in [1]), "generator", "", "list(x)"),
        (np.array([object()]), "an array of Python objects", "", ".astype(float)"),
        (np.ma.masked_array([1.0], [True]), "a masked array", "", ".filled()"),
        ("\ud800", "no valid Unicode", "", "bytes"),
        ({"a": ["\ud800"]}, "no valid Unicode", "['a'][0]", "bytes"),
        (recursive(), "nested more than 200 deep", "", "contain itself"),
        (int, "an object of type type", "", "numpy arrays"),
        (types.SimpleNamespace(__array__=1), "SimpleNamespace", "", "numpy.asarray(x)"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_what_cannot_travel(obj: Any, what: str, where: str, remedy: str) -> None:
    with pytest.raises(Unrepresentable) as caught:
        to_plain(obj)
    message = str(caught.value)
    assert what in message
    assert remedy in message
    assert where in message
    assert where in caught.value.details["where"]


def test_the_deepest_data_there_may_be() -> None:
    data: Any = [ARRAY]
    for _ in range(values.MAX_DEPTH - 1):
        data = [data]
    assert to_plain(data) is data
    packing.unpack(packing.pack(data))
    with pytest.raises(Unrepresentable, match="nested more than"):
        to_plain([data])


@pytest.mark.parametrize(
    "plain, line",
    [
        (np.zeros(2), "Tensor(shape=[2], len=2)"),
        (np.zeros((2, 3)), "Tensor(shape=[2, 3], len=6)"),
        (np.array(1.0), "Tensor(shape=[], len=1)"),
        ({"a": 1, "b": 2, "c": 3}, "Json(object, len=3)"),
        ([1, 2], "Json(array, len=2)"),
        (1, "Json(number)"),
        (1.5, "Json(number)"),
        (True, "Json(bool)"),
        ("text", "Json(string)"),
        (b"abcd", "Bytes(len=4)"),
        (None, "Empty"),
        (Reference(type="Local", path="p"), "Reference(Local)"),
    ],
)
def test_summary(plain: Any, line: str) -> None:
    assert summary(plain) == line


@pytest.mark.parametrize(
    "plain",
    [
        np.zeros((1000, 3)),
        b"x" * 10_000,
        "ü" * 5_000,
        [0.5] * 2_000,
        [[0.5] * 100] * 50,
        {str(n): np.zeros(50) for n in range(20)},
        ["some words here"] * 500,
    ],
    ids=lambda plain: type(plain).__name__,
)
def test_nbytes_is_about_the_packed_size(plain: Any) -> None:
    assert len(packing.pack(plain)) * 0.8 <= nbytes(plain) <= len(packing.pack(plain)) * 1.5


# ── States ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [None, {"mean": ARRAY, "n": 3}, [1, 2], b"raw", "text", ARRAY, 1.5])
def test_plain_states_are_not_pickled(state: Any) -> None:
    assert pickle_state(state) is state
    assert load_state(state) is state


@pytest.mark.parametrize(
    "state",
    [(1, 2), {"a": (1,)}, {1: 2}, {3, 4}, Text("t"), Color.RED, Record(5), np.float64(1.5), Pair(1, 2)],
    ids=str,
)
def test_other_states_come_back_exactly_as_they_were(state: Any) -> None:
    stored = pickle_state(state)
    assert isinstance(stored, bytes)
    assert stored.startswith(PICKLE_MAGIC + f"{sys.version_info[0]}.{sys.version_info[1]}".encode() + b"\0")
    back = load_state(packing.unpack(packing.pack(stored)))
    assert back == state
    assert type(back) is type(state)


def test_classes_of_the_main_program_are_pickled_by_value() -> None:
    local = type("Local", (), {"__module__": "__main__", "answer": 42})
    assert load_state(pickle_state(local())).answer == 42


def test_bytes_that_look_like_a_pickled_state() -> None:
    raw = PICKLE_MAGIC + b"just my data"
    stored = pickle_state(raw)
    assert stored != raw
    assert load_state(stored) == raw


def test_what_cannot_be_pickled() -> None:
    with pytest.raises(Unrepresentable, match=r"a state of type dict cannot be pickled.*lock.*keep open files"):
        pickle_state({"lock": threading.Lock()})


def test_states_of_another_python() -> None:
    stored = PICKLE_MAGIC + b"2.7\0" + cloudpickle.dumps((1,))
    with pytest.raises(FilterNotLoadable, match=r"pickled by Python 2\.7, and this is Python 3\.") as caught:
        load_state(stored)
    assert caught.value.details["pickled_by"] == "2.7"


def test_damaged_states() -> None:
    stored = pickle_state((1, 2))
    for damaged in (stored[:-3], stored[: len(PICKLE_MAGIC) + 6], PICKLE_MAGIC, PICKLE_MAGIC + b"3.11", stored[:20]):
        with pytest.raises(FilterNotLoadable):
            load_state(damaged)


def test_a_state_whose_module_is_missing(tmp_path: Path) -> None:
    (tmp_path / "vanished_module.py").write_text("class Thing: pass\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vanished_module, somatize_worker.values as values\n"
        "sys.stdout.buffer.write(values.pickle_state(vanished_module.Thing()))\n"
    )
    root = str(Path(values.__file__).parents[1])
    made = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=True, cwd=root
    ).stdout
    with pytest.raises(FilterNotLoadable, match="'vanished_module'") as caught:
        load_state(made)
    assert caught.value.details["module"] == "vanished_module"
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), FilterNotLoadable)


def test_the_module_is_light() -> None:
    program = (
        "import sys, json, somatize_worker.values\n"
        "heavy = ('pydantic', 'celery', 'redis', 'pandas', 'torch')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    root = str(Path(values.__file__).parents[1])
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=root, text=True)
    assert json.loads(printed.stdout) == []


# ── torch ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.torch
def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(2, 3)
    made = to_plain({"x": [tensor]})["x"][0]
    assert type(made) is np.ndarray
    assert np.array_equal(made, tensor.numpy())
    assert np.shares_memory(made, tensor.numpy())
    for other, dtype in (
        (tensor.to(torch.bfloat16), np.float32),
        (tensor.half(), np.float16),
        (torch.nn.Parameter(tensor), np.float32),
        (torch.tensor(3), np.int64),
        (torch.tensor([1 + 2j]).conj(), np.complex64),
        (tensor > 1, np.bool_),
        (torch.empty(0, 3), np.float32),
    ):
        assert to_plain(other).dtype == dtype
        assert to_plain(other).shape == tuple(other.shape)
    for other in (tensor.to_sparse(), torch.empty(2, device="meta")):
        with pytest.raises(Unrepresentable, match="a torch tensor"):
            to_plain(other)
    state = pickle_state({"w": tensor})
    assert torch.equal(load_state(state)["w"], tensor)
