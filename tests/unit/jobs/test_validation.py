"""What a job must be like before anything of it is written or run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from somatize_worker.errors import InvalidJob
from somatize_worker.jobs.entry import EntryPoint
from somatize_worker.jobs.validation import check_job
from somatize_worker.settings import Settings

SETTINGS = Settings()


def job(**changes: Any) -> dict[str, Any]:
    return {
        "job_id": "job1",
        "pipeline_id": "p",
        "investigation_id": "i",
        "files": [{"path": "train.py", "content": "print('ü')\n"}, {"path": "pkg/steps.py", "content": ""}],
        "requirements": "six==1.16.0\n# and\nIDNA\n",
        "entry_point": "train.py",
        "input_data": {"x": [1, 2]},
        "params": {"lr": 0.1},
        **changes,
    }


def test_a_good_job() -> None:
    checked = check_job(job(), SETTINGS)
    assert checked.files == (("train.py", "print('ü')\n".encode()), ("pkg/steps.py", b""))
    assert checked.requirements == ("idna", "six==1.16.0")
    assert checked.entry == EntryPoint(script="train.py")
    assert json.loads(checked.params) == {"lr": 0.1}
    assert checked.input_data is not None
    assert json.loads(checked.input_data) == {"x": [1, 2]}


def test_a_protocol_message_is_a_job_too() -> None:
    from somatize_worker import protocol

    message = protocol.PythonPipelineJob.model_validate(job())
    assert check_job(message, SETTINGS) == check_job(job(), SETTINGS)


def test_what_may_be_left_out() -> None:
    checked = check_job({"job_id": "j", "files": [{"path": "a.py", "content": ""}], "entry_point": "a.py"}, SETTINGS)
    assert (checked.requirements, checked.params, checked.input_data) == ((), b"{}", None)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"job_id": ""}, "no job_id"),
        ({"files": []}, "no files"),
        ({"entry_point": ""}, "no entry_point"),
        ({"job_id": "../../x"}, "'../../x'"),
        ({"files": [{"path": "../../etc/cron.d/x", "content": ""}]}, "'../../etc/cron.d/x'"),
        ({"files": [{"path": "train.py", "content": ""}, {"path": "TRAIN.py", "content": ""}]}, "'TRAIN.py'"),
        ({"files": [{"path": "train.py", "content": "\ud800"}]}, "'train.py'"),
        ({"requirements": "six\n--index-url http://evil\n"}, "'--index-url http://evil'"),
        ({"requirements": "two words"}, "'two words'"),
        ({"params": [1]}, "params must be a JSON object, not list"),
        ({"params": {"x": object()}}, "params cannot be written as JSON"),
        ({"pipeline_id": "x" * 300}, "pipeline_id"),
        ({"investigation_id": "a\nb"}, "investigation_id"),
    ],
)
def test_bad_jobs_say_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        check_job(job(**changes), SETTINGS)
    assert said in caught.value.message.replace(" (names and values)", "")


def test_urls_and_paths_are_for_the_worker_to_judge() -> None:
    assert check_job(job(requirements="https://example.org/x.whl\n/opt/x.whl"), SETTINGS).requirements == (
        "/opt/x.whl",
        "https://example.org/x.whl",
    )


def test_limits_name_their_setting() -> None:
    with pytest.raises(InvalidJob, match="SOMA_JOB_FILES_LIMIT\\)"):
        check_job(job(), Settings(job_files_limit=1))
    with pytest.raises(InvalidJob, match=r"SOMA_JOB_FILES_LIMIT_BYTES\); the largest is 'train.py' with 12"):
        check_job(job(), Settings(job_files_limit_bytes=10))
    with pytest.raises(InvalidJob, match="input_data has 2002 bytes"):
        check_job(job(input_data="x" * 2000), Settings(job_files_limit_bytes=1000))


@pytest.mark.parametrize(
    "text, entry",
    [
        ("train.py", EntryPoint(script="train.py")),
        ("pkg/train.py", EntryPoint(script="pkg/train.py")),
        ("train:main", EntryPoint(module="train", function="main")),
        ("pkg.train:main", EntryPoint(module="pkg.train", function="main")),
        ("pkg.train:Trainer.run", EntryPoint(module="pkg.train", function="Trainer.run")),
        ("größe:main", EntryPoint(module="größe", function="main")),
    ],
)
def test_entry_points(text: str, entry: EntryPoint) -> None:
    assert EntryPoint.parse(text) == entry
    assert str(entry) == text


@pytest.mark.parametrize(
    "text",
    [
        "train",
        "pkg.train",
        "pkg/train",
        "train.sh",
        ":main",
        "pkg:",
        "pkg.train:main()",
        "../train.py",
        "/x.py",
        "a b:c",
        "1a:b",
    ],
)
def test_what_is_no_entry_point(text: str) -> None:
    with pytest.raises(InvalidJob):
        EntryPoint.parse(text)


def test_a_script_with_a_function_is_told_how_to_write_it() -> None:
    with pytest.raises(InvalidJob, match="write `pkg.train:main`"):
        EntryPoint.parse("pkg/train.py:main")


@pytest.mark.parametrize(
    "entry_point, said",
    [
        ("trian.py", "no file 'trian.py', but train.py"),
        ("pkg/train.py", "no file 'pkg/train.py'"),
        ("pkg.train:main", "no file 'pkg/train.py'"),
        ("train.sub:main", "no file 'train/sub.py'"),
    ],
)
def test_an_entry_point_must_exist(entry_point: str, said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        check_job(job(entry_point=entry_point), SETTINGS)
    assert said in caught.value.message


def test_an_entry_point_may_come_from_a_requirement() -> None:
    assert check_job(job(entry_point="installed.tool:main"), SETTINGS).entry.module == "installed.tool"


def test_clients_can_check_jobs_without_what_runs_them() -> None:
    code = (
        "import somatize_worker.jobs.validation, sys; print([m for m in sys.modules if '.hosts' in m or m == 'psutil'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
