"""Fitted pipelines: states, and files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from somatize_worker.errors import FilterNotLoadable, InvalidPipeline
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.pipeline import FittedPipeline, as_step, compile_once, loads, pipeline
from somatize_worker.values import load_state

SOURCE = compile_once(pipeline(StandardScaler(), LogisticRegression()).cached())
KEPT = Reference(type="Local", path="states/1.npy")


def states_of(fitted: FittedPipeline) -> list[object]:
    return [entry["state"] for entry in fitted.spec(plan_id="p", mode="forward")["filters"]]


def test_states_go_into_every_spec():
    fitted = FittedPipeline(SOURCE, {"LogisticRegression": KEPT})
    assert states_of(fitted) == [None, KEPT]
    assert repr(fitted) == "FittedPipeline(StandardScaler → LogisticRegression; fitted: LogisticRegression)"
    assert fitted.code == SOURCE.code
    assert compile_once(fitted) is fitted
    assert fitted.fingerprints() == SOURCE.fingerprints()


def test_with_states_leaves_the_original_alone():
    first = FittedPipeline(SOURCE, {"StandardScaler": 1})
    second = first.with_states({"LogisticRegression": 2})
    third = FittedPipeline(second, {"StandardScaler": 3})
    assert [dict(one.states) for one in (first, second, third)] == [
        {"StandardScaler": 1},
        {"StandardScaler": 1, "LogisticRegression": 2},
        {"StandardScaler": 3, "LogisticRegression": 2},
    ]
    given = second.spec(plan_id="p", mode="forward", states={"StandardScaler": 9})
    assert [entry["state"] for entry in given["filters"]] == [9, 2]
    with pytest.raises(TypeError):
        first.states["StandardScaler"] = 2  # type: ignore[index]
    with pytest.raises(InvalidPipeline, match="states for 'Other'"):
        first.with_states({"Other": 1})


def test_live_objects_are_accepted_and_given_back():
    scaler = StandardScaler().fit(np.arange(4.0).reshape(-1, 1))
    fitted = FittedPipeline(SOURCE, {"StandardScaler": scaler})
    assert fitted.state("StandardScaler").mean_ == 1.5
    again = FittedPipeline(SOURCE, fitted.states)  # as they travel
    assert again.state("StandardScaler").mean_ == 1.5
    with pytest.raises(InvalidPipeline, match="no state for 'LogisticRegression'; there is one for: StandardScaler"):
        fitted.state("LogisticRegression")


def test_a_file_brings_everything_back(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    fitted = FittedPipeline(SOURCE, {"StandardScaler": StandardScaler().fit(x), "LogisticRegression": {"w": x}})
    fitted.save(tmp_path / "model.soma")
    back = FittedPipeline.load(tmp_path / "model.soma")
    assert back.state("StandardScaler").n_features_in_ == 3
    np.testing.assert_array_equal(back.states["LogisticRegression"]["w"], x)
    one, two = (each.spec(plan_id="p", mode="forward", input=1) for each in (fitted, back))
    assert one["plan"] == two["plan"]
    assert one["metadata"] == two["metadata"]
    assert [entry["pickle"] for entry in one["filters"]] == [entry["pickle"] for entry in two["filters"]]
    assert back.digest(two) == fitted.digest(one)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.soma"]


def test_a_file_serves_a_process_without_the_users_code(tmp_path: Path, filters: Any, elsewhere: Callable[..., str]):
    source = compile_once(as_step(filters.Center()) >> filters.Scale(times=2))
    FittedPipeline(source, {"Center": filters.Mean(1.0)}).save(tmp_path / "p.soma")
    code = """
import sys
from somatize_worker.pipeline import FittedPipeline, loads
fitted = FittedPipeline.load(sys.argv[1])
center, scale = (loads(one.pickle) for one in fitted.filters)
print(scale.forward(center.forward(3.0, fitted.state("Center")), None), fitted.fingerprints() == eval(sys.argv[2]))
"""
    assert elsewhere(code, str(tmp_path / "p.soma"), repr(source.fingerprints())) == "12.0 True"


def test_states_in_a_store_must_be_fetched(tmp_path: Path):
    fitted = FittedPipeline(SOURCE, {"StandardScaler": KEPT})
    with pytest.raises(InvalidPipeline, match=r"'StandardScaler' lies in a store.*fetch=store\.get"):
        fitted.save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
    fitted.save(tmp_path / "p", fetch=lambda reference: {"from": reference.fields["path"]})
    assert FittedPipeline.load(tmp_path / "p").states["StandardScaler"] == {"from": "states/1.npy"}


def test_what_is_no_saved_pipeline(tmp_path: Path):
    path = tmp_path / "p"
    path.write_bytes(b"hello")
    with pytest.raises(InvalidPipeline, match="is not a pipeline that"):
        FittedPipeline.load(path)
    FittedPipeline(SOURCE, {}).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidPipeline, match="damaged or incomplete"):
        FittedPipeline.load(path)
    with pytest.raises(FileNotFoundError):
        FittedPipeline.load(tmp_path / "nothing")


def test_another_python_version_is_refused(tmp_path: Path):
    path = tmp_path / "p"
    FittedPipeline(SOURCE, {}).save(path)
    head, _, content = path.read_bytes().partition(b"\n")
    path.write_bytes(head + b"\n" + pack({**unpack(content), "python": "3.9"}))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(FilterNotLoadable, match=rf"saved by Python 3\.9, and this is Python {here}"):
        FittedPipeline.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "p"
    FittedPipeline(SOURCE, {"StandardScaler": 1}).save(path)
    before = path.read_bytes()

    def fails(reference: Reference) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        FittedPipeline(SOURCE, {"StandardScaler": KEPT}).save(path, fetch=fails)
    assert path.read_bytes() == before


def test_a_loaded_filter_works():
    state = StandardScaler().fit(np.arange(4.0).reshape(-1, 1))
    fitted = FittedPipeline(SOURCE, {"StandardScaler": state})
    entry = fitted.spec(plan_id="p", mode="forward")["filters"][0]
    out = loads(entry["pickle"]).forward(np.array([[1.5]]), load_state(entry["state"]))
    assert out.tolist() == [[0.0]]
