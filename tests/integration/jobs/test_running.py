"""Jobs run for real: entry points, progress, output, metrics, results."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from somatize_worker.errors import EnvironmentFailed, InvalidJob
from tests.integration.jobs.conftest import Workshop


def test_a_script_and_its_phases(workshop: Workshop) -> None:
    outcome = workshop.run("print('hello')\nprint('{\"accuracy\": 0.9}')\n")
    assert outcome.success, outcome
    assert outcome.output == 'hello\n{"accuracy": 0.9}\n'
    assert outcome.metrics == {"accuracy": 0.9}
    assert (outcome.exit_code, outcome.error, outcome.certificate) == (0, "", None)
    assert outcome.duration_ms > 0
    assert workshop.heard.phases == [
        ("environment", 1, 4),
        ("write_files", 2, 4),
        ("execute", 3, 4),
        ("collect_results", 4, 4),
    ]


def test_two_versions_of_one_package_in_two_jobs(workshop: Workshop) -> None:
    source = "import six\nprint(six.__version__)\n"
    assert workshop.run(source, requirements="six==1.16.0").output == "1.16.0\n"
    assert workshop.run(source, requirements="six==1.15.0").output == "1.15.0\n"


def test_without_requirements_a_job_has_an_environment_of_its_own(workshop: Workshop) -> None:
    outcome = workshop.run(
        "import importlib.metadata as m\nprint(sorted(d.name for d in m.distributions()))\nimport numpy"
    )
    assert outcome.output.startswith("[]\n")
    assert outcome.error == "ModuleNotFoundError: No module named 'numpy'"


def test_a_failed_environment_fails_the_job_in_uvs_words(workshop: Workshop) -> None:
    with pytest.raises(EnvironmentFailed, match="there is no version of six==99"):
        workshop.run("print(1)", requirements="six==99.0")


def test_a_refused_job_starts_nothing(workshop: Workshop) -> None:
    with pytest.raises(InvalidJob, match=r"'\.\./evil\.py'"):
        workshop.run("print(1)", files={"../evil.py": "x"})
    with pytest.raises(InvalidJob, match="no file 'nope.py'"):
        workshop.run("print(1)", entry_point="nope.py")
    assert workshop.heard.progress == []
    workshop.run("")  # so that the folder is there to be looked at


# ── entry points ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_script_in_a_package_imports_its_neighbours_and_the_jobs_files(workshop: Workshop) -> None:
    files = {
        "pkg/train.py": "import helper, top, sys\nprint(helper.NAME, top.NAME, __name__, sys.argv[0][-12:])",
        "pkg/helper.py": "NAME = 'neighbour'",
        "top.py": "NAME = 'top'",
    }
    outcome = workshop.run(files=files, entry_point="pkg/train.py")
    assert outcome.output == "neighbour top __main__ pkg/train.py\n"


def test_a_function_gets_params_and_input(workshop: Workshop) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/train.py": (
            "def main(data, lr, *, epochs=1, unused=None):\n"
            "    print('training')\n"
            "    return {'sum': sum(data['x']), 'lr': lr, 'epochs': epochs}\n"
        ),
    }
    outcome = workshop.run(
        files=files,
        entry_point="pkg.train:main",
        params={"lr": 0.5, "epochs": 3, "typo": 1},
        input_data={"x": [1, 2, 3]},
    )
    assert outcome.metrics == {"sum": 6, "lr": 0.5, "epochs": 3}
    assert "somatize: main() does not take the params typo\n" in outcome.output


@pytest.mark.parametrize(
    "signature, params, given, returned",
    [
        ("input_data, lr", {"lr": 1}, [7], "[input_data, lr]"),
        ("lr, input_data=None", {"lr": 1}, [7], "[lr, input_data]"),
        ("input_data", {}, None, "[input_data]"),
        ("input_data=3", {}, None, "[input_data]"),
        ("x, /, lr", {"lr": 1}, [7], "[x, lr]"),
        ("x, **rest", {"lr": 1, "a": 2}, [7], "[x, rest]"),
        ("**rest", {"lr": 1}, [7], "rest"),
        ("*args, lr=2", {}, None, "[args, lr]"),
        ("", {}, None, "7"),
    ],
)
def test_how_arguments_are_given(
    workshop: Workshop, signature: str, params: dict[str, Any], given: Any, returned: str
) -> None:
    outcome = workshop.run(
        f"def main({signature}): return {returned}", entry_point="train:main", params=params, input_data=given
    )
    names: dict[str, Any] = {"input_data": given, "x": given, "lr": params.get("lr", 2), "args": []}
    if signature == "input_data=3":
        names["input_data"] = 3
    names["rest"] = params | ({"input_data": given} if signature == "**rest" else {})
    assert outcome.metrics == eval(returned, {}, names), outcome


@pytest.mark.parametrize(
    "source, entry_point, said",
    [
        (
            "def main(lr, depth): pass",
            "train:main",
            "main() needs lr, depth: give it in the job's params (there are none)",
        ),
        ("def mian(): pass", "train:main", "train has no 'main', but mian"),
        ("main = 3", "train:main", "is no function but a int"),
        ("class T:\n  pass", "train:T.run", "train has no 'run'"),
        (
            "",
            "not_installed.tool:main",
            "'not_installed.tool' is neither among the job's files nor in its requirements",
        ),
        ("def main(): return {1, 2}", "train:main", "a builtins.set is in it"),
        ("def main(): return {'m': object()}", "train:main", "write everything else to files under outputs/"),
        ("def main(): return 'x' * 5_000_000", "train:main", "are too many, 4194304 are allowed"),
        ("def main(): return eval('[' * 120 + ']' * 120)", "train:main", "more than 100 levels deep"),
    ],
)
def test_what_cannot_be_called_or_kept_says_why(workshop: Workshop, source: str, entry_point: str, said: str) -> None:
    outcome = workshop.run(source, entry_point=entry_point)
    assert not outcome.success
    assert said in outcome.error
    assert said in outcome.output
    assert "Traceback" not in outcome.output


def test_what_functions_may_return(workshop: Workshop) -> None:
    for value, metrics in {
        "None": None,
        "0.5": 0.5,
        "{'loss': float('nan'), 1: (2, 3)}": {"loss": None, "1": [2, 3]},
        "'text'": "text",
    }.items():
        assert workshop.run(f"def main(): return {value}", entry_point="train:main").metrics == metrics
    source = "import numpy\ndef main(): return {'a': numpy.arange(3), 'b': numpy.float32(0.5)}"
    outcome = workshop.run(source, entry_point="train:main", requirements="numpy")
    assert outcome.metrics == {"a": [0, 1, 2], "b": 0.5}


def test_a_coroutine_function_is_run(workshop: Workshop) -> None:
    source = "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    return 5"
    assert workshop.run(source, entry_point="train:main").metrics == 5


def test_what_a_script_finds_around_it(workshop: Workshop, tmp_path: Path) -> None:
    source = """
import json, os, pathlib
environ = {key: value for key, value in os.environ.items() if key.startswith("SOMA_JOB") or key == "SOMA_WORKER_ID"}
print(json.dumps({
    "environ": environ,
    "params": json.load(open(os.environ["SOMA_JOB_PARAMS"])),
    "input": json.load(open(os.environ["SOMA_JOB_INPUT"])),
    "cwd": os.getcwd(),
    "here": sorted(os.listdir(".")),
    "temporary": __import__("tempfile").gettempdir(),
}))
"""
    outcome = workshop.run(
        source,
        params={"lr": 0.1},
        input_data=[1, {"ü": None}],
        options={"attempt": 2, "checkpoint_dir": tmp_path / "ck"},
    )
    found = outcome.metrics
    assert found["params"] == {"lr": 0.1}
    assert found["input"] == [1, {"ü": None}]
    assert found["here"] == ["outputs", "train.py"]
    environ = found["environ"]
    folder = Path(found["cwd"]).parent
    assert environ["SOMA_JOB_ID"] == "job1"
    assert environ["SOMA_JOB_PIPELINE_ID"] == "pipeline-7"
    assert environ["SOMA_JOB_INVESTIGATION_ID"] == "investigation-9"
    assert environ["SOMA_JOB_ATTEMPT"] == "2"
    assert environ["SOMA_WORKER_ID"] == "worker-1"
    assert environ["SOMA_JOB_OUTPUTS"] == f"{found['cwd']}/outputs"
    assert environ["SOMA_JOB_CHECKPOINT_DIR"] == str(tmp_path / "ck")
    assert Path(found["temporary"]).parent == folder


def test_multiprocessing_and_other_python_processes_work(workshop: Workshop) -> None:
    source = """
import multiprocessing, subprocess, sys
from somatize_worker import report

def square(x):
    return x * x

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(square, range(4)))
    child = "from somatize_worker import report; import six; print('child', six.__version__)"
    subprocess.run([sys.executable, "-c", child], check=True)
"""
    outcome = workshop.run(source, requirements="six==1.16.0")
    assert outcome.success, outcome.output
    assert outcome.output == "fork [0, 1, 4, 9]\nspawn [0, 1, 4, 9]\nchild 1.16.0\n"


# ── progress and output ──────────────────────────────────────────────────────────────────────────────────────────


def test_progress_and_output_come_while_the_job_runs(workshop: Workshop, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    source = f"""
import os, time
print("first")
print('{{"step": 1, "total": 2, "metrics": {{"loss": 0.5}}}}')
while not os.path.exists({str(go_on)!r}):
    time.sleep(0.01)
print('{{"step": 2, "total": 2, "metrics": {{"loss": 0.25}}}}')
"""
    outcome = workshop.start(source)
    deadline = time.monotonic() + 30
    while ("execute", 1, 2, {"loss": 0.5}) not in workshop.heard.progress or "first" not in workshop.heard.lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go_on.touch()
    assert outcome().metrics == {"loss": 0.25}
    steps = [entry for entry in workshop.heard.progress if entry[2] == 2]
    assert steps == [("execute", 1, 2, {"loss": 0.5}), ("execute", 2, 2, {"loss": 0.25})]
    phases = [phase for phase, *_ in workshop.heard.progress]
    assert phases.index("collect_results") == len(phases) - 1


def test_report_works_without_the_package_being_installed(workshop: Workshop) -> None:
    source = """
import importlib.metadata
from somatize_worker import report
print([d.name for d in importlib.metadata.distributions()])
report(progress=0.25, metrics={"loss": 0.5})
report(metrics={"loss": 0.125}, step=7)
report(progress=1.0)
"""
    outcome = workshop.run(source)
    assert outcome.output == "[]\n"
    own = [entry for entry in workshop.heard.progress if entry[0] == "execute" and entry[2] != 4]
    assert own[0] == ("execute", 25, 100, {"loss": 0.5})
    assert own[-1][:3] == ("execute", 100, 100)
    assert outcome.metrics == {"loss": 0.125}


def test_processes_that_the_job_starts_can_report_too(workshop: Workshop) -> None:
    source = """
import multiprocessing, subprocess, sys
from somatize_worker import report

def work(step):
    report(metrics={"loss": 0.5}, step=step)

if __name__ == "__main__":
    child = "from somatize_worker import report; report(metrics={'loss': 0.25}, step=%d); print('reported')"
    subprocess.run([sys.executable, "-c", child % 1], check=True)
    for step, method in ((2, "fork"), (3, "spawn")):
        process = multiprocessing.get_context(method).Process(target=work, args=(step,))
        process.start()
        process.join()
    report(metrics={"loss": 0.125}, step=4)
"""
    outcome = workshop.run(source)
    assert outcome.output == "reported\n"
    own = [entry[1:] for entry in workshop.heard.progress if entry[0] == "execute" and entry[2] != 4]
    assert own == [(1, 0, {"loss": 0.25}), (2, 0, {"loss": 0.5}), (3, 0, {"loss": 0.5}), (4, 0, {"loss": 0.125})]


def test_unicode_standard_error_and_no_newline_at_the_end(workshop: Workshop) -> None:
    outcome = workshop.run(
        "import sys\nprint('größe 日本 🙂')\nsys.stdout.write('bad \\udcff surrogate\\n')\n"
        "sys.stdout.buffer.write(b'raw \\xff bytes\\n')\nsys.stdout.flush()\nprint('to stderr', file=sys.stderr)\n"
        "print('the end', end='')",
        files={"data/größe.txt": "ü"},
    )
    assert outcome.success, outcome
    assert sorted(outcome.output.splitlines()) == sorted(
        ["größe 日本 🙂", "bad \\udcff surrogate", "raw \N{REPLACEMENT CHARACTER} bytes", "to stderr", "the end"]
    )


def test_a_hundred_megabytes_of_output(workshop: Workshop) -> None:
    workshop.limit(job_output_limit_bytes=1 << 20)
    source = """
print("the first line")
line = "x" * 99
for number in range(1_000_000):
    print(line)
print('{"accuracy": 0.75}')
print("the last line")
"""
    outcome = workshop.run(source)
    assert outcome.success
    lines = outcome.output.splitlines()
    assert lines[0] == "the first line"
    assert lines[-1] == "the last line"
    assert any("left out" in line for line in lines)
    assert len(outcome.output) < 1.1 * (1 << 20)
    assert outcome.metrics == {"accuracy": 0.75}
    assert workshop.heard.lines[-1] == "the last line"
    assert sum(map(len, workshop.heard.lines)) < 50 << 20


def test_a_line_without_end(workshop: Workshop) -> None:
    outcome = workshop.run("import sys\nfor _ in range(300):\n    sys.stdout.write('y' * 100_000)")
    assert outcome.success
    assert outcome.output.replace("\n", "").endswith("y" * 1000)
    assert len(outcome.output) < 1.2 * workshop.settings.job_output_limit_bytes


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_traceback_shows_the_users_lines_and_nothing_of_ours(workshop: Workshop) -> None:
    files = {"pkg/steps.py": "def fit():\n    raise ValueError('bad rate')\n"}
    outcome = workshop.run("from pkg import steps\n\nsteps.fit()\n", files=files)
    assert not outcome.success
    assert (outcome.error, outcome.error_type) == ("ValueError: bad rate", "builtins.ValueError")
    assert outcome.exit_code == 1
    assert outcome.traceback == outcome.output
    assert outcome.traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "train.py", line 3, in <module>',
        "    steps.fit()",
        '  File "pkg/steps.py", line 2, in fit',
        "    raise ValueError('bad rate')",
        "ValueError: bad rate",
    ]
    called = workshop.run("def main():\n    return 1 / 0\n", entry_point="train:main")
    assert called.traceback.splitlines()[1] == '  File "train.py", line 2, in main'
    assert "inside" not in called.output


@pytest.mark.parametrize("entry_point", ["train.py", "train:main", "outer.py"])
def test_a_syntax_error_points_at_the_users_line(workshop: Workshop, entry_point: str) -> None:
    outcome = workshop.run("x = 1\nif x\n    pass\n", files={"outer.py": "\nimport train\n"}, entry_point=entry_point)
    assert outcome.error == "SyntaxError: expected ':' (train.py, line 2)"
    assert '  File "train.py", line 2\n    if x\n        ^\n' in outcome.output
    assert "inside/job.py" not in outcome.output
    assert "importlib" not in outcome.output


@pytest.mark.parametrize(
    "source, success, code, said",
    [
        ("raise SystemExit", True, 0, ""),
        ("import sys; sys.exit(0)", True, 0, ""),
        ("import os; print('x', flush=True); os._exit(0)", True, 0, ""),
        ("import sys; sys.exit(3)", False, 3, "the job exited with status 3"),
        ("import sys; sys.exit('no data')", False, 1, "the job exited saying 'no data'"),
        ("import os; os._exit(4)", False, 4, "exited with code 4"),
        ("raise KeyboardInterrupt", False, 1, "KeyboardInterrupt"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False, None, "killed by SIGSEGV"),
        ("import os; print('here', flush=True); os.abort()", False, None, "SIGABRT"),
        ("import threading, os; threading.Thread(target=lambda: os._exit(5)).start()", False, 5, "exited with code 5"),
    ],
)
def test_how_a_job_may_end(workshop: Workshop, source: str, success: bool, code: int | None, said: str) -> None:
    outcome = workshop.run(source)
    assert (outcome.success, outcome.exit_code) == (success, code), outcome
    assert said in outcome.error
    died = "os._exit" in source or "signal" in source or "abort" in source
    assert (outcome.certificate is not None) == (died and not success)


def test_a_result_that_the_job_wrote_itself_is_not_believed_over_its_exit(workshop: Workshop) -> None:
    source = """
import os
control = os.path.join(os.path.dirname(os.getcwd()), "control")
open(os.path.join(control, "result.json"), "w").write('{"ok": 3, "value": [')
os._exit(1)
"""
    outcome = workshop.run(source)
    assert (outcome.success, outcome.exit_code) == (False, 1)


def test_the_text_of_an_error_is_kept_within_reason(workshop: Workshop) -> None:
    workshop.limit(job_output_limit_bytes=1 << 20)
    outcome = workshop.run("raise ValueError('begin' + 'x' * 20_000_000 + 'end \\ud800')")
    assert outcome.error.startswith("ValueError: beginxxx")
    assert "characters left out" in outcome.error
    assert outcome.error.endswith("xend ?")
    assert len(outcome.error) < 11_000
    assert len(outcome.traceback) < 210_000
    assert outcome.error_mro == (
        "builtins.ValueError",
        "builtins.Exception",
        "builtins.BaseException",
        "builtins.object",
    )


# ── what is left of a job ────────────────────────────────────────────────────────────────────────────────────────


def test_outputs_come_back_as_references(workshop: Workshop) -> None:
    source = """
import os
os.makedirs("outputs/models")
open("outputs/models/best.bin", "wb").write(bytes(range(256)) * 1000)
open("outputs/report.md", "w").write("# größe")
os.symlink("/etc/passwd", "outputs/passwd")
open("not-an-output", "w").write("x")
"""
    outcome = workshop.run(source)
    assert sorted(outcome.outputs) == ["models/best.bin", "report.md"]
    assert workshop.store.get(outcome.outputs["models/best.bin"]) == bytes(range(256)) * 1000
    assert workshop.store.get(outcome.outputs["report.md"]).decode() == "# größe"
    assert "somatize: outputs/passwd was not collected: it is a link" in outcome.output


def test_a_failed_job_leaves_its_outputs_too(workshop: Workshop) -> None:
    outcome = workshop.run("open('outputs/partial.txt', 'w').write('half')\nraise RuntimeError('then this')")
    assert outcome.error == "RuntimeError: then this"
    assert workshop.store.get(outcome.outputs["partial.txt"]) == b"half"


def test_too_much_output_fails_the_job_and_says_which_limit(workshop: Workshop) -> None:
    workshop.limit(job_outputs_limit_bytes=100)
    outcome = workshop.run("open('outputs/big', 'w').write('x' * 101)")
    assert not outcome.success
    assert "101 bytes under outputs/, 100 are allowed (SOMA_JOB_OUTPUTS_LIMIT_BYTES)" in outcome.error
    failing = workshop.run("open('outputs/big', 'w').write('x' * 101)\nraise ValueError('first')")
    assert failing.error == "ValueError: first"
    assert "somatize: outputs/ was not collected" in failing.output


def test_a_checkpoint_survives_into_the_next_attempt(workshop: Workshop) -> None:
    source = """
import os, pathlib
folder = pathlib.Path(os.environ["SOMA_JOB_CHECKPOINT_DIR"])
epochs = sorted(path.name for path in folder.iterdir())
print(os.environ["SOMA_JOB_ATTEMPT"], epochs)
(folder / f"epoch{len(epochs)}").write_text("weights")
if len(epochs) < 2:
    os._exit(9)
"""
    outcomes = [workshop.run(source, job_id="resumed", options={"attempt": attempt}) for attempt in (1, 2, 3)]
    assert [outcome.output for outcome in outcomes] == [
        "1 []\n",
        "2 ['epoch0']\n",
        "3 ['epoch0', 'epoch1']\n",
    ]
    assert [outcome.success for outcome in outcomes] == [False, False, True]
    assert workshop.run(source, job_id="resumed").output == "1 []\n"


def test_twenty_jobs_ask_for_the_same_new_environment_at_once(workshop: Workshop, tmp_path: Path) -> None:
    workshop.limit(env_folder=str(tmp_path / "fresh"))
    jobs = [workshop.job("import six\nprint(six.__version__)\n", requirements="six==1.14.0") for _ in range(20)]
    outputs: list[str] = []
    messages: list[str] = []

    def run(job: dict[str, Any]) -> None:
        def heard(phase: str, step: int, total: int, metrics: Any) -> None:
            messages.append(str(metrics.get("message", "")))

        outputs.append(workshop.runner.run(job, on_progress=heard).output)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == ["1.14.0\n"] * 20
    assert sum("+ six" in message for message in messages) == 1


def test_an_outcome_is_plain_data(workshop: Workshop) -> None:
    outcome = workshop.run("import os; os.abort()")
    assert json.loads(json.dumps(outcome.certificate)) == outcome.certificate
