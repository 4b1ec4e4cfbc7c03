"""From a waitpid status to a sentence."""

from __future__ import annotations

import json
import signal

import pytest

from somatize_worker.hosts.certificate import Death, certificate, describe, reason_of
from somatize_worker.packing import pack, unpack


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        (Death(0), "exited"),
        (Death(3 << 8), "exited"),
        (Death(signal.SIGSEGV), "crashed"),
        (Death(signal.SIGABRT | 0x80), "crashed"),  # with a core dump
        (Death(signal.SIGKILL), "killed from outside"),
        (Death(signal.SIGKILL, kernel_killed=True), "out of memory"),
        (Death(signal.SIGKILL, "deadline", kernel_killed=True), "deadline"),
        (Death(signal.SIGTERM, "cancelled"), "cancelled"),
        (Death(signal.SIGTERM), "crashed"),
        (Death(3 << 8, "deadline"), "exited"),  # it ended by itself before the signal came
        (Death(signal.SIGSEGV, "deadline"), "crashed"),
        (Death(None), "unknown"),
        (Death(None, "cancelled"), "cancelled"),
    ],
)
def test_the_reason(death: Death, reason: str) -> None:
    assert reason_of(death) == reason


def test_a_sentence_for_a_crash() -> None:
    found = certificate(
        Death(signal.SIGSEGV), peak_bytes=312 << 20, node="train", seconds=1.23456, last_lines=["epoch 1", "epoch 2"]
    )
    assert found == {
        "reason": "crashed",
        "signal": "SIGSEGV",
        "detail": "",
        "peak_bytes": 312 << 20,
        "node": "train",
        "seconds": 1.235,
        "last_lines": ["epoch 1", "epoch 2"],
    }
    assert describe(found) == (
        "killed by SIGSEGV after 1.24 s, in node 'train' (peak memory 312 MiB); last lines:\n  epoch 1\n  epoch 2"
    )
    assert json.loads(json.dumps(found)) == found
    assert unpack(pack(found)) == found


@pytest.mark.parametrize(
    ("death", "detail", "text"),
    [
        (Death(3 << 8), "", "exited with code 3 after 0 s; it printed nothing"),
        (Death(signal.SIGKILL, "cancelled"), "", "killed by SIGKILL (cancelled) after 0 s"),
        (
            Death(signal.SIGKILL, "memory limit"),
            "2 GiB used, 1 GiB allowed",
            "(memory limit: 2 GiB used, 1 GiB allowed)",
        ),
        (Death(signal.SIGKILL, "memory limit"), "", "SOMA_MEMORY_LIMIT_BYTES"),
        (Death(signal.SIGKILL, kernel_killed=True), "", "no memory left"),
        (Death(signal.SIGKILL), "", "killed by SIGKILL from outside"),
        (Death(signal.SIGSEGV, "memory limit"), "2 GiB used", "killed by SIGSEGV after"),
        (Death(40), "", "killed by signal 40"),
        (Death(None), "", "ended in an unknown way"),
        (Death(None, "cancelled"), "", "ended (cancelled)"),
    ],
)
def test_sentences(death: Death, detail: str, text: str) -> None:
    assert text in describe(certificate(death, detail=detail))


def test_the_detail_belongs_to_the_reason() -> None:
    assert certificate(Death(signal.SIGSEGV, "memory limit"), detail="2 GiB used")["detail"] == ""
