"""Settings come from the environment given, once, and a wrong one names itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker.errors import InvalidSettings
from somatize_worker.settings import Settings, parse_bytes, passed_on, table, variable, visible_gpus


def test_defaults_need_no_environment() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.store_url.startswith("file://")


def test_every_field_is_a_documented_variable() -> None:
    rows = {name: meaning for name, _, meaning in table()}
    assert list(rows) == [variable(spec.name) for spec in fields(Settings)]
    assert all(name.startswith("SOMA_") for name in rows)
    assert all(len(meaning) > 10 for meaning in rows.values())


def test_variables_and_overrides() -> None:
    environ = {
        "SOMA_REDIS_URL": "redis://example/1",
        "SOMA_INLINE_LIMIT_BYTES": "128k",
        "SOMA_LEASE_S": "2.5",
        "SOMA_ENV_ALLOW": "urls, paths",
        "SOMA_STORE": "",
        "REDIS_URL": "ignored",
    }
    settings = Settings.from_env(environ, lease_s=1.0, store="redis")
    assert settings.redis_url == "redis://example/1"
    assert settings.inline_limit_bytes == 128 << 10
    assert settings.lease_s == 1.0
    assert settings.env_allow == ("urls", "paths")
    assert settings.store_url == "redis"


def test_an_override_hides_a_wrong_variable() -> None:
    assert Settings.from_env({"SOMA_LEASE_S": "soon"}, lease_s=3.0).lease_s == 3.0


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().lease_s = 1.0  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SOMA_LEASE_S", "soon"),
        ("SOMA_LEASE_S", "nan"),
        ("SOMA_LEASE_S", "0"),
        ("SOMA_LEASE_S", "-1"),
        ("SOMA_GRACE_S", "inf"),
        ("SOMA_MAX_ATTEMPTS", "0"),
        ("SOMA_MAX_ATTEMPTS", "1.5"),
        ("SOMA_SPARE_HOSTS", "-1"),
        ("SOMA_MEMORY_LIMIT_BYTES", "lots"),
        ("SOMA_MEMORY_LIMIT_BYTES", "1e999"),
        ("SOMA_MEMORY_LIMIT_BYTES", "-1g"),
        ("SOMA_MEMORY_LIMIT_BYTES", "5q"),
    ],
)
def test_a_wrong_value_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_env({name: text})
    assert f"{name}={text!r}" in str(caught.value)
    assert "default" in str(caught.value)
    assert caught.value.details["variable"] == name


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("64k", 64 << 10),
        ("64K", 64 << 10),
        ("64kb", 64 << 10),
        ("64 KiB", 64 << 10),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        (" 7 ", 7),
        ("7b", 7),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert parse_bytes(text) >= 0
    except ValueError:
        return


def test_secrets_are_not_passed_on() -> None:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "SOMA_REDIS_URL": "redis://:secret@host",
        "SOMA_TOKEN": "secret",
        "CELERY_BROKER_URL": "redis://:secret@host",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "MY_DATA": "/data",
    }
    assert passed_on(environ=environ) == {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0"}
    chosen = passed_on(["MY_*", "SOMA_*", "CELERY_*"], environ)
    assert chosen == {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0", "MY_DATA": "/data"}


def test_visible_gpus() -> None:
    assert visible_gpus({}) is None
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ""
