"""From pickles to filters."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from somatize_worker.errors import FilterNotLoadable, InvalidPipeline
from somatize_worker.hosts.inside.filters import PYTHON, Filters


def filters(kept: Any = None, **pickles: bytes) -> Filters:
    specs = [
        {"node_id": node_id, "pickle": data, "state": None, "trainable": False} for node_id, data in pickles.items()
    ]
    return Filters(specs, worker_id="w7", load_state=lambda stored: stored, kept=kept)


def test_plain_functions_of_one_pickle_are_one_object_and_others_are_not():
    plain = cloudpickle.dumps(lambda x: x)
    factor = 3
    closure = cloudpickle.dumps(lambda x: x * factor)
    steps = filters(a=plain, b=plain, c=closure, d=closure).load("abcd")
    assert steps["a"].filter is steps["b"].filter
    assert steps["c"].filter is not steps["d"].filter


def test_filters_are_fresh_for_each_plan_unless_they_are_kept():
    data = cloudpickle.dumps(lambda x: x)
    assert filters(a=data).load("a")["a"].filter is not filters(a=data).load("a")["a"].filter
    kept: dict[Any, Any] = {}
    assert filters(kept, a=data).load("a")["a"].filter is filters(kept, a=data).load("a")["a"].filter


def test_a_missing_module_is_named_with_where_and_what_to_do():
    module = ModuleType("gone_away")
    exec("def f(x): return x", module.__dict__)
    sys.modules["gone_away"] = module
    try:
        data = pickle.dumps(module.f)
    finally:
        del sys.modules["gone_away"]
    with pytest.raises(FilterNotLoadable) as caught:
        filters(a=data).load("a")
    message = str(caught.value)
    for part in ("node 'a'", "'gone_away' is missing", "w7", sys.executable, "requirements"):
        assert part in message
    assert caught.value.details["module"] == "gone_away"
    assert caught.value.details["node_id"] == "a"


class Leaves:
    def __reduce__(self) -> Any:
        return sys.exit, (1,)


@pytest.mark.parametrize("data", [b"not a pickle", pickle.dumps(Leaves())])
def test_whatever_goes_wrong_in_unpickling_names_the_node(data: bytes):
    with pytest.raises(FilterNotLoadable, match="node 'a': its filter does not unpickle on worker w7"):
        filters(a=data).load("a")


def test_another_pythons_pickles_are_refused_before_they_are_read():
    with pytest.raises(FilterNotLoadable, match=rf"pickled by Python 2\.7, and worker w7 runs Python {PYTHON}"):
        filters(a=b"not a pickle").load("a", pickled_by="2.7")
    assert filters().load([], pickled_by="2.7") == {}


def test_a_node_without_a_filter_is_named():
    with pytest.raises(InvalidPipeline, match="no filter for node 'b'; the plan has filters for 'a'"):
        filters(a=cloudpickle.dumps(abs)).load("ab")
