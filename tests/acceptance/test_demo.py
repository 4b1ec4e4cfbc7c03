"""What a new user sees first."""

from __future__ import annotations

import json
import re

from tests.support.commands import PseudoTerminal, cluster_folders, command, gone, somatize, whole_tree


def test_the_demo_in_a_terminal() -> None:
    terminal = PseudoTerminal(command("demo"))
    terminal.wait_for("are ready")
    processes, folders = whole_tree(terminal.process.pid), cluster_folders(terminal.process.pid)
    terminal.wait_for("%")  # the training step's progress, live
    assert "accuracy" not in terminal.shown
    assert terminal.finish() == 0
    shown = terminal.shown
    assert re.search(r"✓  classify  trainer-1 +\d", shown)
    assert re.search(r"✓  scale +cpu-1 +\d+ ms", shown)
    assert re.search(r"9\d\.\d% accuracy: \d+ of 450 digits", shown)
    assert gone(processes, folders)


def test_the_demo_for_programs() -> None:
    done = somatize("demo", "--json", "--seed", "3")
    figures = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert figures["accuracy"] > 0.9
    assert {node["node"]: node["worker"] for node in figures["training"]["nodes"]} == {
        "scale": "cpu-1",
        "reduce": "cpu-1",
        "classify": "trainer-1",
    }
    assert figures["training"]["nodes"][2]["ms"] > 0
