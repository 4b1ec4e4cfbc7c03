"""Requirement lines: equal needs become equal text, and nothing but requirements passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker import requirements
from somatize_worker.errors import EnvironmentFailed
from somatize_worker.requirements import normalise


def test_comments_blank_lines_order_case_and_spaces_make_no_difference() -> None:
    one = "\ufeff# what we need\r\n\r\nNumPy >= 2 , < 3   # arrays\r\nscikit_learn\nsix==1.16.0\n"
    other = ["six == 1.16.0", "", "scikit-learn", "numpy<3,>=2", "SIX==1.16.0"]
    assert normalise(one) == normalise(other) == ("numpy<3,>=2", "scikit-learn", "six==1.16.0")


def test_continued_lines_extras_and_markers() -> None:
    text = 'uvicorn[Standard, \\\n  a_b] >= 0.2 ; python_version<"4" # note\n'
    assert normalise(text) == ('uvicorn[a-b,standard]>=0.2; python_version < "4"',)


def test_different_versions_differ() -> None:
    assert normalise("six==1.15.0") != normalise("six==1.16.0")


def test_nothing_is_nothing() -> None:
    assert normalise("") == normalise([]) == normalise("\n # only a comment\n\n") == ()


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "-e .",
        "-e git+https://example.org/x.git",
        "--index-url https://evil.example/simple",
        "--extra-index-url=https://evil.example/simple",
        "-i https://evil.example",
        "--find-links /tmp",
        "--no-binary :all:",
        "six==1.16.0 --hash=sha256:00",
        "six -i https://evil.example",
        "six --global-option=x",
    ],
)
@pytest.mark.parametrize("allow", [(), ("urls", "paths")])
def test_options_are_refused_whatever_is_allowed(line: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(EnvironmentFailed, match="options are not accepted") as caught:
        normalise(["idna", line], allow=allow)
    assert repr(line) in caught.value.message
    assert caught.value.details["requirement"] == line


URLS = [
    "https://example.org/six-1.0-py3-none-any.whl",
    "git+https://github.com/benjaminp/six",
    "git+ssh://git@example.org/x.git@main#egg=x",
    "six @ https://example.org/six.whl",
    "six[extra] @ git+https://example.org/six ; python_version > '3'",
]
PATHS = [
    "/opt/wheels/six.whl",
    "file:///opt/wheels/six.whl",
    "six @ file:///opt/wheels/six.whl",
]


@pytest.mark.parametrize("line", URLS)
def test_urls_pass_only_where_allowed(line: str) -> None:
    for allow in ((), ("paths",)):
        with pytest.raises(EnvironmentFailed, match="SOMA_ENV_ALLOW=urls"):
            normalise(line, allow=allow)
    (kept,) = normalise(line, allow=("urls",))
    assert "://" in kept
    assert normalise(kept, allow=("urls",)) == (kept,)


@pytest.mark.parametrize("line", PATHS)
def test_paths_pass_only_where_allowed(line: str) -> None:
    for allow in ((), ("urls",)):
        with pytest.raises(EnvironmentFailed, match="SOMA_ENV_ALLOW=paths"):
            normalise(line, allow=allow)
    (kept,) = normalise(line, allow=("paths",))
    assert requirements.local_path(kept) == Path("/opt/wheels/six.whl")
    assert normalise(kept, allow=("paths",)) == (kept,)


@pytest.mark.parametrize(
    "line", ["./six", "../six", ".", "~/six", "wheels/six.whl", "six.whl", "six.tar.gz", "C:\\six"]
)
def test_relative_paths_are_refused_even_where_paths_are_allowed(line: str) -> None:
    with pytest.raises(EnvironmentFailed, match="paths are not accepted"):
        normalise(line)
    with pytest.raises(EnvironmentFailed, match="absolute"):
        normalise(line, allow=("paths",))


@pytest.mark.parametrize(
    "line",
    [
        "six==",
        "six==1.0==2.0,",
        "two words",
        "six; rm -rf /",
        "$(touch x)",
        "`id`",
        "six\0",
        "six\x1b[31m",
        "${HOME}",
        "x @ https://${SECRET}@example.org/x.whl",
        "[extra]",
        "0_",
        "six[0_]",
        "é",
        "a" * 2000,
    ],
)
def test_what_is_no_requirement_is_refused_and_quoted(line: str) -> None:
    with pytest.raises(EnvironmentFailed, match="is refused"):
        normalise(line, allow=("urls", "paths"))


def test_too_many_lines() -> None:
    with pytest.raises(EnvironmentFailed, match="1001 requirements are too many"):
        normalise([f"package{number}" for number in range(1001)])


def test_names() -> None:
    kept = normalise("A_b>=1\nc.d[x]==2\ne ; python_version>'3'\nf @ https://x.org/f.whl\n", allow=("urls",))
    assert requirements.names(kept) == {"a-b", "c-d", "e", "f"}
    assert requirements.names(normalise("https://x.org/f.whl", allow=("urls",))) == set()


@given(st.text(max_size=60))
def test_any_text_is_refused_or_becomes_stable(text: str) -> None:
    try:
        kept = normalise(text)
    except EnvironmentFailed:
        return
    assert normalise(kept) == kept
    assert all("\n" not in line and not line.startswith("-") for line in kept)
