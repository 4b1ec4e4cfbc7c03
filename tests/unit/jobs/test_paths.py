"""A job's files stay in its folder, and are the same files on every system."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker.errors import InvalidJob
from somatize_worker.jobs.paths import check_id, check_path, check_together


@pytest.mark.parametrize(
    "path",
    ["train.py", "pkg/train.py", "a/b/c/data.json", ".hidden", "ünï/cødé.py", "with space.txt", "a..b", "x", "con_fig"],
)
def test_ordinary_paths_pass(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path, why",
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("//etc/passwd", "absolute"),
        ("../up.py", "'..'"),
        ("a/../../up.py", "'..'"),
        ("a/..", "'..'"),
        ("./a.py", "'.'"),
        ("a/./b.py", "'.'"),
        ("a//b.py", "''"),
        ("a/", "''"),
        ("..\\up.py", "different systems"),
        ("C:\\x.py", "different systems"),
        ("C:x.py", "different systems"),
        ("x.py:stream", "different systems"),
        ("a\0.py", "cannot have"),
        ("a\n.py", "cannot have"),
        ("a\ud800.py", "cannot have"),
        ("a.", "ends with a dot"),
        ("a /b.py", "dot or a space"),
        (" a.py", "space"),
        ("a.py ", "space"),
        ("CON", "device"),
        ("nul.txt", "device"),
        ("pkg/Aux.py", "device"),
        ("com1", "device"),
        ("lpt9.log.txt", "device"),
        ("x" * 256, "longer than"),
        ("é" * 128, "longer than"),
        ("/".join("d" * 33), "too long"),
        ("/".join(["d" * 250] * 5), "too long"),
        ("outputs/model.bin", "outputs/"),
        ("Outputs/model.bin", "outputs/"),
        ("outputs", "outputs/"),
        ("somatize_worker/report.py", "package's name"),
        ("somatize_worker.py", "package's name"),
    ],
)
def test_unsafe_paths_are_refused_by_name(path: str, why: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        check_path(path)
    assert why in caught.value.message
    assert repr(path[:200])[:-1] in caught.value.message
    assert "path" in caught.value.details


@pytest.mark.parametrize(
    "paths, named",
    [
        (["a.py", "a.py"], ["a.py"]),
        (["a.py", "A.py"], ["a.py", "A.py"]),
        (["pkg/x.py", "PKG/x.py"], ["pkg/x.py", "PKG/x.py"]),
        (["stra\u00dfe.py", "STRASSE.py"], ["STRASSE.py"]),
        (["\u00e9.py", "e\u0301.py"], ["e\u0301.py"]),
        (["a", "a/b.py"], ["a", "a/b.py"]),
        (["a/b.py", "A"], ["a/b.py", "A"]),
    ],
)
def test_colliding_paths_are_refused(paths: list[str], named: list[str]) -> None:
    with pytest.raises(InvalidJob) as caught:
        check_together(paths)
    assert all(repr(name) in caught.value.message for name in named)


def test_neighbours_do_not_collide() -> None:
    check_together(["a/b.py", "a/c.py", "ab", "a.b/c", "b/a.py", "pkg/X.py", "Pkg/y.py"])


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "/", "\\", "C:"]), max_size=6).map("/".join)
)
def test_whatever_passes_stays_inside(text: str) -> None:
    try:
        path = check_path(text)
    except InvalidJob:
        return
    root = Path("/root/of/job")
    assert (root / path).resolve().is_relative_to(root)
    assert ".." not in PurePosixPath(path).parts
    assert not PureWindowsPath(path).is_absolute()
    assert not PureWindowsPath(path).drive
    assert ".." not in PureWindowsPath(path).parts


@pytest.mark.parametrize("job_id", ["job1", "a", "2024-01-01_run.3", "A" * 128])
def test_ids_that_are_file_names(job_id: str) -> None:
    assert check_id(job_id) == job_id


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "-rf",
        ".hidden",
        "a..b",
        "a.",
        "nul",
        "con.x",
        "A" * 129,
        "a b",
        "é",
        "a\n",
    ],
)
def test_ids_that_are_none(job_id: str) -> None:
    with pytest.raises(InvalidJob, match="cannot be a file's name"):
        check_id(job_id)
