"""Fingerprints: the same everywhere for the same filter, another one for any other."""

from __future__ import annotations

import base64
import datetime
import enum
import functools
import io
import json
import random
import re
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline import Filter, dumps, fingerprint_of, loads, sk

Elsewhere = Callable[..., str]

SOURCE = '''
import enum
import functools
import math
import numpy as np
from dataclasses import dataclass, field
from somatize_worker.pipeline import Filter
import parts
from parts import helper, Base

LIMIT = 10
TABLE = {"a": 1, "b": (2, 3)}
WORDS = {"x", "y", "z", "more", "words"}

class Mode(enum.Enum):
    FAST = 1
    SLOW = 2

@dataclass
class Options:
    """Doc."""
    depth: int = 3
    tags: set = field(default_factory=lambda: {"p", "q", "r"})

def deep(x):
    return x + LIMIT

def middle(x):
    return deep(x) * 2

@functools.lru_cache(maxsize=None)
def remembered(n):
    return n * 7

def make(k):
    def inner(x):
        return x * k
    return inner

class Model(Base, Filter):
    """What it does."""
    mode = Mode.FAST

    def __init__(self, n=1):
        self.n = n
        self.options = Options()
        self.closure = make(5)
        self.square = lambda v: v ** 2

    @property
    def size(self):
        return self.n + 1

    @staticmethod
    def still(x):
        return x

    @functools.cached_property
    def slow(self):
        return self.n * 3

    def fit(self, x, y=None):
        from parts import late
        return late(x)

    def forward(self, x, state):
        # a comment
        s = super().forward(x, state)
        if x in ("left", "right"):
            return [v for v in s if v != "skip"]
        return middle(helper(x)) + parts.shift(x) + TABLE["a"] + len(WORDS) + remembered(self.size) + math.pi
'''
PARTS = """
SHIFT = 4
class Base:
    def forward(self, x, state):
        return x
def helper(x):
    return x + 1
def shift(x):
    return x + SHIFT
def late(x):
    return x - 1
def nobody(x):
    return x
"""
MOVED = "\n\n# moved\n" + SOURCE.replace("# a comment", "# another").replace("What it does", "It does that")
SAME = {
    "itself": (SOURCE, PARTS),
    "comments, lines and docstrings": (MOVED.replace('"""Doc."""', '"""Other."""'), PARTS),
    "a function that nobody calls": (SOURCE, PARTS + "    return 99\n"),
}
CHANGES = [
    ("x + LIMIT", "x - LIMIT"),
    ("LIMIT = 10", "LIMIT = 11"),
    ('"b": (2, 3)', '"b": (2, 4)'),
    ('"more", "words"', '"more"'),
    ("FAST = 1", "FAST = 3"),
    ("mode = Mode.FAST", "mode = Mode.SLOW"),
    ("depth: int = 3", "depth: int = 4"),
    ("n * 7", "n * 8"),
    ("make(5)", "make(6)"),
    ("x * k", "x / k"),
    ("v ** 2", "v ** 3"),
    ("self.n + 1", "self.n + 2"),
    ("self.n * 3", "self.n * 4"),
    ('("left", "right")', '("left", "wrong")'),
    ('v != "skip"', 'v != "keep"'),
    ("def fit(self, x, y=None)", "def fit(self, x, y=0)"),
    ("class Model(Base, Filter)", "class Model(Filter)"),
    ("def still(x):\n        return x", "def still(x):\n        return -x"),
]
CHANGES_ELSEWHERE = [("x + 1", "x + 2"), ("SHIFT = 4", "SHIFT = 5"), ("x - 1", "x - 2")]
RUN = """
import json, pathlib, sys, tempfile
from somatize_worker.pipeline import fingerprint_of
made = {}
for name, files in json.loads(pathlib.Path(sys.argv[1]).read_text()).items():
    with tempfile.TemporaryDirectory() as folder:
        for module, text in zip(("model", "parts"), files):
            pathlib.Path(folder, module + ".py").write_text(text)
            sys.modules.pop(module, None)
        sys.path.insert(0, folder)
        import model
        made[name] = fingerprint_of(model.Model(n=2))
        sys.path.remove(folder)
print(json.dumps(made))
"""


@pytest.fixture
def fingerprints(tmp_path: Path, elsewhere: Elsewhere) -> Callable[[dict[str, tuple[str, str]], str], dict[str, str]]:
    """Fingerprints of ``Model(n=2)`` from (model.py, parts.py), made by another process with a hash seed."""

    def run(variants: dict[str, tuple[str, str]], seed: str) -> dict[str, str]:
        (tmp_path / "variants.json").write_text(json.dumps(variants))
        made: dict[str, str] = json.loads(elsewhere(RUN, str(tmp_path / "variants.json"), seed=seed))
        return made

    return run


def test_code_counts_by_what_it_does_in_every_process(fingerprints: Callable[..., dict[str, str]]):
    variants = dict(SAME)
    for old, new in CHANGES:
        assert old in SOURCE
        variants[new] = SOURCE.replace(old, new), PARTS
    for old, new in CHANGES_ELSEWHERE:
        assert old in PARTS
        variants[f"elsewhere {new}"] = SOURCE, PARTS.replace(old, new)
    made = fingerprints(variants, "1")
    assert made == fingerprints(dict(reversed(variants.items())), "12345")
    assert {made[name] for name in SAME} == {made["itself"]}
    others = [name for name in variants if name not in SAME]
    assert [name for name in others if made[name] == made["itself"]] == []
    assert len({made[name] for name in others}) == len(others)


def test_a_journey_changes_nothing(filters: Any, elsewhere: Elsewhere):
    code = """
import base64, sys
from somatize_worker.pipeline import fingerprint_of, loads
print(fingerprint_of(loads(base64.b64decode(sys.argv[1]))))
"""
    for name in ("Center", "Scale", "ScaleByModule", "Shift"):
        obj = getattr(filters, name)()
        assert fingerprint_of(obj) == fingerprint_of(loads(dumps(obj)))
        assert elsewhere(code, base64.b64encode(dumps(obj)).decode()) == fingerprint_of(obj)


class Params(Filter):
    def __init__(self, **params: Any) -> None:
        self.__dict__.update(params)

    def forward(self, x, state):
        return x


def of(value: Any) -> str:
    return fingerprint_of(Params(value=value))


Point = namedtuple("Point", "x y")
Flag = enum.Flag("Flag", "A B")


@dataclass(frozen=True)
class Frozen:
    a: int = 1


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


VALUES: list[Any] = [
    None, True, 1, 1.0, -1, 2**70, 0.0, -0.0, float("nan"), float("inf"), 1j, "1", b"1", bytearray(b"2"), "", b"", (),
    [], {}, set(), frozenset({1}), {1}, (1,), [1], [1, 2], [2, 1], (1, 2), {1: 2}, {2: 1}, {"1": 2}, {"a": {"b": 1}},
    ..., range(3), range(4), slice(1, 2), {(1, 2), (3, 4)}, {"a", "b"}, OrderedDict(a=1, b=2), OrderedDict(b=2, a=1),
    defaultdict(list, a=[1]), defaultdict(set, a=[1]), Counter("aab"), Point(1, 2), Point(2, 1), Flag.A, Flag.B,
    Frozen(), Frozen(2), Slotted(1), Slotted(2), np.float32(1), np.float64(1), np.int64(1), np.zeros(3),
    np.zeros((3, 1)), np.zeros((1, 3)), np.zeros(3, "f4"), np.zeros(0), np.array(0.0), np.array(["a"]),
    np.array(["b"]), np.arange(6), np.arange(6).reshape(2, 3), np.array([1, "x", None], object),
    np.array([(1, 2.0)], "i1,f8"), np.array(["2020-01-01"], "M8[D]"), np.dtype("f4"), re.compile("a"),
    re.compile("a", re.I), Path("/a"), Path("/b"), datetime.date(2020, 1, 1), datetime.timedelta(1), np.sin, np.cos,
    len, abs, "abc".upper, "abd".upper, str.upper, functools.partial(np.add, 1), functools.partial(np.add, 2), int,
    float, Frozen, np.ndarray, np, re, lambda x: x, lambda x: x + 1, lambda x, y=1: x, lambda x, y=2: x,
    lambda x, *, y=1: x, random.Random(1), random.Random(2), np.random.default_rng(1), np.random.default_rng(2),
    np.random.RandomState(1), Ridge(), Ridge(alpha=2), make_pipeline(StandardScaler(), Ridge()),
    make_pipeline(StandardScaler(), Ridge(alpha=2)), classmethod(lambda cls: 1), list[int],
]  # fmt: skip


def test_every_value_has_a_fingerprint_of_its_own():
    made = [of(value) for value in VALUES]
    assert made == [of(value) for value in VALUES]
    seen: dict[str, Any] = {}
    for value, one in zip(VALUES, made, strict=True):
        assert one not in seen, f"{value!r} is taken for {seen[one]!r}"
        seen[one] = value


def test_order_does_not_matter_where_there_is_none():
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    names = [f"name{number}" for number in range(50)]
    backwards = names[::-1]
    assert of(set(names)) == of(set(backwards))
    assert of({frozenset({1, 2}): 1, (3,): 2}) == of({(3,): 2, frozenset({2, 1}): 1})


def test_layout_and_sharing_do_not_matter():
    array = np.arange(12.0).reshape(3, 4)
    assert of(array) == of(np.asfortranarray(array)) == of(array.copy()[:, ::1])
    assert of(array.T) == of(np.ascontiguousarray(array.T))
    shared = [1, 2]
    assert of([shared, shared]) == of([[1, 2], [1, 2]])


def test_padding_in_structures_does_not_matter():
    dtype = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    one, two = np.zeros(2, dtype), np.full(2, 255, "u1").repeat(16).view(dtype).copy()
    two["a"], two["b"] = 0, 0
    assert one.tobytes() != two.tobytes()
    assert of(one) == of(two)


def test_cycles_end():
    def cycle() -> Any:
        outer: dict[str, Any] = {"name": "a"}
        outer["inner"] = [outer, {frozenset({1}): outer}]
        return outer

    class Registered:
        members: set[Any] = set()  # noqa: RUF012

        def all(self):
            return Registered.members

    Registered.members.add(Registered)
    assert of(cycle()) == of(cycle())
    assert of(Registered()) == of(Registered())


def test_mutually_recursive_functions():
    def build(last: int) -> Any:
        functions: dict[str, Any] = {}
        names = [f"f{number}" for number in range(20)]
        body = "\n".join(f"def {name}(x): return {' + '.join(f'{other}(x)' for other in names)}" for name in names)
        exec(body + f"\ndef g(x): return {last} + f0(x)", functions)
        return functions["g"]

    assert of(build(1)) == of(build(1))
    assert of(build(1)) != of(build(2))


def test_what_getstate_leaves_out_does_not_count():
    class Careful(Params):
        def __getstate__(self):
            return {key: value for key, value in vars(self).items() if key != "lock"}

    assert fingerprint_of(Careful(a=1, lock=threading.Lock())) == fingerprint_of(Careful(a=1, lock=threading.Lock()))


@pytest.mark.parametrize("value", [threading.Lock(), io.BufferedReader(io.BytesIO()), (n for n in [1])])
def test_what_has_no_content_is_an_error(value: Any):
    with pytest.raises(InvalidPipeline, match=r"Params\.parts\[0\] is a .*, whose content cannot be compared"):
        fingerprint_of(Params(parts=[value]))


def test_estimators_count_by_parameters_version_and_what_they_learned(monkeypatch: pytest.MonkeyPatch):
    import sklearn

    from somatize_worker.pipeline import origins

    def made(obj: Any) -> str:
        return fingerprint_of(sk(obj).filter)

    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    assert made(LogisticRegression(C=2.0)) == made(LogisticRegression(C=2.0)) != made(LogisticRegression(C=3.0))
    assert made(RandomForestClassifier(3, random_state=0)) == made(RandomForestClassifier(3, random_state=0))
    fitted = made(RandomForestClassifier(3, random_state=0).fit(x, y))
    assert fitted == made(RandomForestClassifier(3, random_state=0).fit(x, y))
    assert fitted != made(RandomForestClassifier(3, random_state=0).fit(x, 1 - y))
    before = made(Ridge())
    monkeypatch.setattr(sklearn, "__version__", "0.0")
    origins.version_of.cache_clear()
    assert made(Ridge()) != before
    origins.version_of.cache_clear()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_data_that_travelled_is_the_same(value: Any):
    assert of(value) == of(loads(dumps(value)))
