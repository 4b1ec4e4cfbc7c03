"""From the setting ``SOMA_STORE`` to a store."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from somatize_worker.errors import InvalidSettings
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings, default_folder
from somatize_worker.stores.disk import own_folder
from somatize_worker.stores.files import FileStore

if TYPE_CHECKING:
    import redis

_SERVER_SCHEMES = ("redis", "rediss", "unix")


def open_store(settings: Settings, client: redis.Redis | None = None) -> DataStore:
    """The store that the settings name.

    Args:
        client: serves ``SOMA_STORE=redis``; without it one is made for ``settings.redis_url``.

    Raises:
        InvalidSettings: no such kind of store; what is known.
        StoreError: the folder cannot be made.
        UnsafePath: the default folder belongs to somebody else.
    """
    url = settings.store_url
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        folder = unquote(parts.path)
        if not settings.store:
            own_folder(default_folder("store"))
        return FileStore(folder, settings)
    if url == "redis" or (parts.scheme in _SERVER_SCHEMES and (parts.netloc or parts.path)):
        return _server_store(url, settings, client)
    raise InvalidSettings(
        f"SOMA_STORE={url!r} names no store; known are file:///absolute/path (a folder that all machines share), "
        "redis (the server of SOMA_REDIS_URL), and redis://host:port/db (another server)",
        variable="SOMA_STORE",
    )


def _server_store(url: str, settings: Settings, client: redis.Redis | None) -> DataStore:
    import redis

    from somatize_worker.stores.redis import RedisStore

    if url != "redis" or client is None:
        address = settings.redis_url if url == "redis" else url
        try:
            client = redis.Redis.from_url(address, socket_connect_timeout=5, socket_keepalive=True)
        except ValueError as error:
            raise InvalidSettings(f"{_public(address)!r} is no server's address: {error}") from None
    return RedisStore(client, settings, url=_public(url))


def _public(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
