"""Errors cross processes and languages: every one survives pickle and JSON."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from somatize_worker import errors
from somatize_worker.errors import SomaError, family

KINDS = family(SomaError)
DETAILS = {
    "plan_id": "p1",
    "attempts": 3,
    "certificate": {"signal": 9, "lines": ["a", "ü"]},
    "none": None,
    "message": "a detail may be called so",
    "self": "or so",
}


def test_the_family_is_the_module() -> None:
    defined = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SomaError)}
    assert set(KINDS) >= defined
    assert len(defined) > 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(kind: type[SomaError], protocol: int) -> None:
    error = kind("what is wrong; what to do", **DETAILS)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert (str(again), again.message, again.details) == (str(error), error.message, DETAILS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_json(kind: type[SomaError]) -> None:
    error = kind("what is wrong; what to do", **DETAILS)
    again = SomaError.from_dict(json.loads(json.dumps(error.to_dict(), allow_nan=False)))
    assert type(again) is kind
    assert (str(again), again.details) == (str(error), DETAILS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_copy_and_bare(kind: type[SomaError]) -> None:
    assert copy.deepcopy(kind("text", a=[1])).details == {"a": [1]}
    assert str(kind()) == ""


def test_each_says_what_it_is_for() -> None:
    assert [kind.__name__ for kind in KINDS if not kind.__doc__] == []


def test_the_tree_drawn_on_top_names_each_once() -> None:
    drawn = [word for line in (errors.__doc__ or "").splitlines() for word in line.split() if word in vars(errors)]
    names = [kind.__name__ for kind in KINDS if kind.__module__ == errors.__name__]
    assert sorted(set(drawn) - {"SomaError.from_dict"}) == sorted(names)


def test_details_that_json_lacks_become_text() -> None:
    error = SomaError("text", path=pickle, ratio=float("nan"), pair=(1, float("inf")), nested={1: b"x"})
    written = json.loads(json.dumps(error.to_dict(), allow_nan=False))["details"]
    assert written["ratio"] == "nan"
    assert written["pair"] == [1, "inf"]
    assert written["nested"] == {"1": "b'x'"}


def test_an_unknown_kind_is_still_an_error() -> None:
    again = SomaError.from_dict({"error": "FromTheFuture", "message": "text"})
    assert (type(again), str(again), again.details) == (SomaError, "text", {})


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ServerUnreachable, ConnectionError),
        (errors.MissingData, LookupError),
        (errors.PlanNotFound, LookupError),
        (errors.ResultTimeout, TimeoutError),
        (errors.InvalidSettings, ValueError),
        (errors.Unrepresentable, TypeError),
    ],
)
def test_builtin_bases(kind: type[SomaError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
