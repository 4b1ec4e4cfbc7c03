"""Filters as bytes: what travels by value, what by name, and what cannot travel."""

from __future__ import annotations

import base64
import importlib
import pickletools
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline import Filter, as_step, compile_once, dumps, loads, requirements_of, sk

Elsewhere = Callable[..., str]

RUN = """
import base64, pickle, sys, numpy
try:
    import userpkg
    raise SystemExit("the package is importable here")
except ImportError:
    pass
step = pickle.loads(base64.b64decode(sys.argv[1]))
state = step.fit(numpy.array([1.0, 3.0])) if hasattr(step, "fit") else None
print(step.forward(numpy.array([1.0, 2.0]), state).tolist())
"""


def text_of(obj: Any) -> str:
    return base64.b64encode(dumps(obj)).decode()


def modules_in(data: bytes) -> set[str]:
    """Modules that a pickle imports when it is loaded."""
    strings = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    return {text for text in strings if text in sys.modules}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Center", "[-1.0, 0.0]"),
        ("Scale", "[3.0, 6.0]"),
        ("ScaleByModule", "[3.0, 6.0]"),
        ("Shift", "[104.0, 105.0]"),
    ],
)
def test_a_users_package_travels_by_value(name: str, expected: str, filters: Any, elsewhere: Elsewhere):
    assert elsewhere(RUN, text_of(getattr(filters, name)())) == expected


def test_a_module_imported_late_is_carried_even_if_it_was_never_loaded_here(filters: Any, elsewhere: Elsewhere):
    for module in ("userpkg.late", "userpkg.helpers"):
        sys.modules.pop(module, None)
    assert elsewhere(RUN, text_of(filters.Shift())) == "[104.0, 105.0]"


def test_what_a_worker_pickles_in_turn_travels_on(filters: Any, elsewhere: Elsewhere):
    code = """
import base64, pickle, sys, numpy
from somatize_worker.values import pickle_state
center, shift = pickle.loads(base64.b64decode(sys.argv[1]))
print(base64.b64encode(pickle_state(center.fit(numpy.array([1.0, 3.0])))).decode())
"""
    state = elsewhere(code, text_of((filters.Center(), filters.Shift())))
    read = """
import base64, sys
from somatize_worker.values import load_state
print(type(load_state(base64.b64decode(sys.argv[1]))).__name__)
"""
    assert elsewhere(read, state) == "Mean"


def test_installed_modules_travel_by_name():
    data = dumps(sk(Ridge()).filter)
    assert "sklearn.linear_model._ridge" in modules_in(data)
    assert len(data) < 1000


def test_this_package_travels_by_name():
    class Own(Filter):
        def forward(self, x, state):
            return x

    assert "somatize_worker.pipeline.filter" in modules_in(dumps(Own()))


def test_loading_where_the_package_is_does_not_replace_it(filters: Any):
    late = importlib.import_module("userpkg.late")
    loads(dumps(filters.Shift()))
    assert sys.modules["userpkg.late"] is late


class Plain:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def forward(self, x, state):
        return x


LOCK = threading.Lock()


def uses_lock(x):
    with LOCK:
        return x


class Cyclic(Plain):
    def __init__(self):
        self.me = self
        self.loader = Plain(items=[{"deep": threading.Lock()}])


class Refuses(Plain):
    def __reduce__(self):
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Plain(lock=threading.Lock()), r"model\.lock is a _thread\.lock.*inside fit or forward"),
        (lambda: Plain(a=Plain(b=[1, threading.RLock()])), r"model\.a\.b\[1\] is a _thread\.RLock"),
        (Cyclic, r"model\.loader\.items\[0\]\['deep'\] is a _thread\.lock"),
        (lambda: Plain(rows=(n for n in [1])), r"model\.rows is a generator.*make a list"),
        (lambda: uses_lock, r"model → global LOCK is a _thread\.lock"),
        (lambda: partial(uses_lock), r"→ global LOCK is a _thread\.lock"),
        (Refuses, r"it is a tests.*Refuses, which does not pickle \(RuntimeError: not today\)"),
    ],
)
def test_what_does_not_pickle_is_named_with_the_way_to_it(make: Callable[[], Any], said: str):
    with pytest.raises(InvalidPipeline, match=said) as caught:
        compile_once(as_step(make()).named("model"))
    assert str(caught.value).startswith("step 'model' cannot be sent to a worker")
    assert caught.value.details["step"] == "model"


def test_files_and_connections_are_named(tmp_path: Path):
    with open(tmp_path / "log", "wb") as file, pytest.raises(InvalidPipeline) as caught:
        dumps(Plain(log=file), what="model")
    assert "model.log is a _io.BufferedWriter" in str(caught.value)
    assert "keep the path or address" in str(caught.value)
    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(InvalidPipeline, match=r"model\.db is a sqlite3\.Connection.*keep the address"):
            dumps(Plain(db=connection), what="model")
        with pytest.raises(InvalidPipeline, match=r"model → variable connection is a sqlite3\.Connection"):
            dumps(lambda x: connection.execute(f"select {x}"), what="model")


def test_a_class_attribute_is_found_too():
    class Shared(Plain):
        lock = threading.Lock()

    with pytest.raises(InvalidPipeline, match=r"Shared\.lock is a _thread\.lock"):
        dumps(Shared())


def test_dumping_from_many_threads(filters: Any):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: dumps(filters.Scale()), range(40)))
    assert len({len(data) for data in made}) == 1


def test_requirements_are_what_is_declared():
    assert requirements_of(Plain()) == []
    assert requirements_of(Plain(requirements=["numpy>=1", " scipy "])) == ["numpy>=1", "scipy"]
    assert requirements_of(Plain(requirements="numpy\n\nscipy\n")) == ["numpy", "scipy"]
    for wrong in (3, {"numpy": 1}, [1]):
        with pytest.raises(InvalidPipeline, match="should be a list of requirement lines"):
            requirements_of(Plain(requirements=wrong))


def test_requirements_come_from_what_an_adapter_stands_for():
    def clean(x):
        return x

    clean.requirements = ["pandas>=2.1"]  # type: ignore[attr-defined]
    ridge = Ridge()
    ridge.requirements = ["scikit-learn"]
    compiled = compile_once(as_step(clean) >> ridge >> Plain(requirements=["numpy"]))
    assert compiled.requirements == ("numpy", "pandas>=2.1", "scikit-learn")
    assert [one.requirements for one in compiled.filters] == [("pandas>=2.1",), ("scikit-learn",), ("numpy",)]


def test_functions_are_sent_as_they_are():
    compiled = compile_once(as_step(np.sqrt) >> (lambda x: x + 1))
    root, add = (loads(one.pickle) for one in compiled.filters)
    assert root is np.sqrt
    assert add(2) == 3
