"""Connections to the server: timeouts, reconnects, and errors that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from somatize_worker.errors import InvalidSettings, ServerUnreachable
from somatize_worker.ledger.scripts import OUTAGES

_T = TypeVar("_T")
_SCHEMES: Final = ("redis", "rediss", "unix")
_OLDEST: Final = (7, 0)
_LONGEST_PAUSE_S: Final = 1.0


def connect(
    url: str,
    *,
    name: str = "",
    connect_timeout_s: float = 3.0,
    command_timeout_s: float = 10.0,
    wait_s: float = 0.0,
) -> redis.Redis:
    """A client (bytes in, bytes out) of a server that has answered.

    It can be shared by threads. A connection that breaks is made anew and the command sent again, a few times within a
    second; a server that accepts but does not answer is noticed after ``command_timeout_s``. ``wait_s`` is how long to
    go on trying at the start (0: once).

    Raises:
        InvalidSettings: the URL is not that of a Redis server.
        ServerUnreachable: nobody answers there, or not as a server that this package can use.
    """
    check_url(url)
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": command_timeout_s,
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 4, supported_errors=(redis.ConnectionError,)),
    }
    if urlsplit(url).scheme != "unix":
        options["socket_keepalive"] = True
    if name:
        options["client_name"] = name
    try:
        client = redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise InvalidSettings(
            f"{hide_password(url)} is not a usable server URL: {error}", url=hide_password(url)
        ) from None
    try:
        patiently(lambda: _try(url, connect_timeout_s), wait_s)
    except BaseException:
        client.close()
        raise
    return client


def patiently(
    call: Callable[[], _T], deadline_s: float = 300.0, *, first_s: float = 0.05, longest_s: float = 1.0
) -> _T:
    """The result of ``call``, repeated through an outage for up to ``deadline_s`` seconds, with growing pauses.

    ``call`` must be safe to repeat: every method of the ledger is (``claim`` and ``report`` with a ``nonce``).

    Raises:
        ServerUnreachable: the outage lasted longer, or is one that does not pass by itself (a wrong password).
    """
    deadline = time.monotonic() + deadline_s
    pause_s = 0.05
    while True:
        try:
            return call()
        except (ServerUnreachable, *OUTAGES) as error:
            if _is_permanent(error) or time.monotonic() + pause_s > deadline:
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def check_url(url: str) -> None:
    """Refuse what redis-py would accept silently or explain badly.

    Raises:
        InvalidSettings: not a URL of a Redis server (what is wrong with it, what it should be).
    """
    shown = hide_password(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidSettings(f"{shown} is not a usable server URL: {error}", url=shown) from None
    if parts.scheme not in _SCHEMES:
        raise InvalidSettings(
            f"{shown} is not a Redis or Valkey URL: its scheme is {parts.scheme or 'missing'!r}; write "
            "redis://host:6379/0, rediss://host:6379/0 (TLS) or unix:///path/to/socket",
            url=shown,
        )
    if parts.scheme == "unix":
        return
    database = parts.path.strip("/")
    if database and not database.isdigit():
        raise InvalidSettings(
            f"{shown} names the database {database!r}: it must be a number, as in redis://{parts.hostname}:"
            f"{port or 6379}/0",
            url=shown,
        )


def hide_password(url: str) -> str:
    """The URL for messages and logs, with ``***`` for a password."""
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, credentials = head.partition("://")
    if not slashes:
        return f"***@{tail}"
    user, colon, _ = credentials.partition(":")
    return urlunsplit(urlsplit(f"{scheme}://{user}{':***' if colon else ''}@{tail}"))


def _try(url: str, timeout_s: float) -> None:
    options: dict[str, Any] = {"socket_connect_timeout": timeout_s, "socket_timeout": timeout_s}
    with redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), **options) as probe:
        try:
            probe.ping()
            _check_server(url, probe)
        except (redis.RedisError, OSError, UnicodeError) as error:
            raise _refused(url, error) from error


def _check_server(url: str, probe: redis.Redis) -> None:
    try:
        info: dict[str, Any] = probe.info("server")
    except redis.exceptions.NoPermissionError:
        return  # an access list may hide INFO; then the first script that fails says why
    shown = hide_password(url)
    if info.get("redis_mode") == "cluster" or info.get("server_mode") == "cluster":
        raise ServerUnreachable(
            f"{shown} is a Redis Cluster node, which this package cannot use: take a single server, replicated or not",
            url=shown,
            permanent=True,
        )
    version = str(info.get("redis_version", ""))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise ServerUnreachable(
            f"the server at {shown} is version {version}; take Redis 7.0 or later, or Valkey", url=shown, permanent=True
        )


def _refused(url: str, error: Exception) -> ServerUnreachable:
    shown = hide_password(url)
    text = str(error) or type(error).__name__
    permanent = True
    if isinstance(error, redis.BusyLoadingError):
        what, permanent = "is still loading its data: try again in a moment", False
    elif isinstance(error, (redis.AuthenticationError, redis.exceptions.NoPermissionError)) or "NOAUTH" in text:
        what = f"refuses this user or password ({text}): set it in the URL, redis://user:password@host:port/0"
    elif "DB index" in text:
        what = f"has no such database ({text}): take another number at the end of the URL"
    elif "SSL" in text or "certificate" in text.lower():
        what = f"could not agree on TLS ({text}): rediss:// is for servers with TLS only; see also ssl_ca_certs=PATH"
    elif isinstance(error, (redis.exceptions.InvalidResponse, UnicodeError)) or ("Protocol Error" in text):
        what = f"answers, but not as a Redis or Valkey server does ({text}): check host and port"
    else:
        what = (
            f"does not answer ({text}): check that it runs and that host and port are right "
            f"(SOMA_REDIS_URL){_tls_hint(url, text)}; `somatize up` starts one here"
        )
        permanent = False
    return ServerUnreachable(f"the Redis or Valkey server at {shown} {what}", url=shown, permanent=permanent)


def _tls_hint(url: str, text: str) -> str:
    if url.startswith("rediss:"):
        return ", and that this port speaks TLS, as rediss:// says"
    return ", or write rediss:// if this port speaks TLS" if "closed" in text or "reset" in text else ""


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, redis.AuthenticationError):
        return True
    return isinstance(error, ServerUnreachable) and bool(error.details.get("permanent"))
