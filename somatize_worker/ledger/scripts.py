"""Loads the Lua scripts and runs them: one round trip each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Any, Final

import redis

from somatize_worker.errors import ServerUnreachable
from somatize_worker.ledger.states import TERMINAL, TRANSITIONS

OUTAGES: Final = (redis.ConnectionError, redis.TimeoutError)
"""What redis-py raises when the server cannot be reached or does not answer in time."""


class Script:
    """One script's text, with what it shares with the others in front, and its digest."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = f"{_guards()}\n{_read('common')}\n{_read(name)}".encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


@cache
def load(name: str) -> Script:
    """The script in ``scripts/<name>.lua``."""
    return Script(name)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


def _guards() -> str:
    """The tables FROM and FINISHED, in Lua, from the transitions in ``states``."""
    operations = ", ".join(f"{name} = {_set(starts)}" for name, starts in sorted(TRANSITIONS.items()))
    return f"local FROM = {{ {operations} }}\nlocal FINISHED = {_set(TERMINAL)}"


def _set(names: Any) -> str:
    return "{ " + ", ".join(f"{name} = true" for name in sorted(names)) + " }"


class Runner:
    """Runs scripts and commands on a client; outages become ServerUnreachable."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._execute: Callable[..., Any] = client.execute_command
        self._lines: list[redis.Redis] = []  # with a connection each, for scripts whose replies are read later

    def run(self, script: Script, arguments: list[Any]) -> Any:
        """One script's reply. The text is sent only when the server does not have it (new, restarted, flushed)."""
        try:
            return self._execute("EVALSHA", script.sha, 0, *arguments)
        except redis.exceptions.NoScriptError:
            return self.command("EVAL", script.text, 0, *arguments)
        except OUTAGES as error:
            raise unreachable(self.client, error) from error

    def begin(self, script: Script, arguments: list[Any]) -> Callable[[], Any]:
        """As :meth:`run`, in two steps: the script starts now, and what is returned waits for the reply.

        It may be called on another thread. If the connection breaks the script is run again, and so it is in every
        further call: it must be one that recognises a repetition.
        """
        pending: list[redis.Redis] = []
        with suppress(*OUTAGES):
            line = self._line()
            _connection(line).send_command("EVALSHA", script.sha, 0, *arguments, check_health=False)
            pending.append(line)

        def reply() -> Any:
            if pending:
                line = pending.pop()
                with suppress(redis.exceptions.NoScriptError, *OUTAGES):
                    answer = _connection(line).read_response()
                    self._lines.append(line)
                    return answer
            return self.run(script, arguments)

        return reply

    def _line(self) -> redis.Redis:
        try:
            return self._lines.pop()
        except IndexError:
            return redis.Redis(connection_pool=self.client.connection_pool, single_connection_client=True)

    def command(self, *arguments: Any) -> Any:
        """One command's reply."""
        try:
            return self._execute(*arguments)
        except OUTAGES as error:
            raise unreachable(self.client, error) from error

    def commands(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """The replies of several commands, in one round trip, not as one transaction."""
        with self.client.pipeline(transaction=False) as pipeline:
            queue: Callable[..., Any] = pipeline.execute_command
            for command in commands:
                queue(*command)
            try:
                return list(pipeline.execute())
            except OUTAGES as error:
                raise unreachable(self.client, error) from error


def _connection(line: redis.Redis) -> Any:
    return line.connection


def unreachable(client: redis.Redis, error: Exception) -> ServerUnreachable:
    """The package's error for an outage met while a client was in use."""
    where = client.connection_pool.connection_kwargs
    address = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
    return ServerUnreachable(
        f"the Redis or Valkey server at {address} does not answer ({error}); check that it runs and can be reached",
        address=str(address),
    )
