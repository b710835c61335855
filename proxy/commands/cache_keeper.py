"""Whoever keeps the answers, and how they are asked: Redis by itself, a proxy over HTTP as an admin."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx2

from proxy import admin
from proxy.commands import CANNOT_START, stop, unix_milliseconds
from proxy.core import json
from proxy.core.cache import CacheGone
from proxy.core.secret import Secret
from proxy.serving import minted
from proxy.serving.pepper import of_answers, path
from proxy.settings.load import SettingsError, Sources, settings_of
from proxy.settings.model import Settings
from proxy.store.cache.redis import RedisCache

KEY: Final = "MISTRAL_PROXY_ADMIN_KEY"
"""The variable of the environment that has the admin key: an argument could be read by everybody on the machine."""

_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")
_DEFAULT: Final = Path("proxy.yaml")
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on that nobody can call, and what reaches them from here."""

_TIMEOUT: Final = httpx2.Timeout(5.0, read=600.0)
"""Seconds. To look at every entry of a large cache takes a while."""

_MOST_SHOWN: Final = 300
"""Characters of what a proxy says."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a proxy, what of its cache itself, and the numbers that the answer has at least."""

    method: str
    path: str
    work: admin.Work
    numbers: tuple[str, ...]


STATS: Final = Question("GET", "/admin/cache", admin.stats, ("entries", "bytes"))
CLEAR: Final = Question("DELETE", "/admin/cache", admin.delete, ("deleted",))
VERIFY: Final = Question("POST", "/admin/cache/verify", admin.verify, ("right", "wrong"))


def ask(
    question: Question, team: str | None, url: str | None, config: Path | None, environ: Mapping[str, str]
) -> Mapping[str, int]:
    """The answer. Stops the command, with a sentence, when there is none to be had. A proxy at a `url` needs no
    configuration to be asked."""
    if url:
        return _of_proxy(question, team, url, environ)
    file = config or (_DEFAULT if _DEFAULT.exists() else None)
    try:
        settings = settings_of(Sources.read(file, environ)).settings
    except SettingsError as error:
        stop(str(error), CANNOT_START)
    if settings.store.shared:
        return _of_redis(question, team, settings, environ)
    if not settings.server.port:
        stop(f"server.port of {file} is 0: say with --url where the proxy is.", CANNOT_START)
    return _of_proxy(question, team, address(settings), environ)


def address(settings: Settings) -> str:
    """Where a proxy with these settings can be reached from this machine."""
    host = _EVERYWHERE.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


# Over HTTP.


def _of_proxy(question: Question, team: str | None, url: str, environ: Mapping[str, str]) -> Mapping[str, int]:
    key = environ.get(KEY, "")
    if not key:
        stop(f"The proxy at {url} is asked as an admin: set {KEY} to one of its server.admin_keys.", CANNOT_START)
    if not _SENDABLE.fullmatch(key):
        stop(f"{KEY} is no key: one is printable ASCII without spaces or line breaks.", CANNOT_START)
    try:
        # No redirect is followed, and no proxy of the environment asked: either would have the key.
        with httpx2.Client(trust_env=False, timeout=_TIMEOUT) as client:
            answer = client.request(
                question.method,
                url + question.path,
                params={} if team is None else {"team": team},
                headers={"authorization": f"Bearer {key}"},
            )
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        kind = type(error).__name__
        stop(f"The proxy at {url} does not answer ({kind}). --url says where to ask.", CANNOT_START)
    found = _object(answer.content)
    if answer.status_code != httpx2.codes.OK:
        _refused(url, answer.status_code, found.get("error"))
    if not all(type(found.get(name)) is int for name in question.numbers):
        stop(f"What is at {url} does not answer as this proxy does.", CANNOT_START)
    return {name: value for name, value in found.items() if type(value) is int}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.decode(body)
    except json.Malformed:
        found = None
    return found if isinstance(found, dict) else {}


def _refused(url: str, status: int, error: Any) -> NoReturn:
    error = error if isinstance(error, dict) else {}
    if error.get("code") == "invalid_api_key":
        stop(f"The proxy at {url} does not know the admin key in {KEY}.", CANNOT_START)
    if error.get("code") == "unknown_url":
        stop(
            f"The proxy at {url} cannot be asked: it has no server.admin_keys, or --url has a path too many.",
            CANNOT_START,
        )
    message = error.get("message")
    if not isinstance(message, str) or not message.isprintable():  # it goes to a terminal
        stop(f"What is at {url} does not answer as this proxy does (status {status}).", CANNOT_START)
    stop(f"The proxy at {url} says: {message[:_MOST_SHOWN]}", CANNOT_START)


# Redis.


def _of_redis(
    question: Question, team: str | None, settings: Settings, environ: Mapping[str, str]
) -> Mapping[str, int]:
    secret = _secret(settings, environ) if question is VERIFY else secrets.token_bytes(32)
    try:
        return asyncio.run(_ask_redis(question, team, settings, secret))
    except CacheGone as error:
        stop(f"The Redis of store.url cannot be asked ({error}).", CANNOT_START)


def _secret(settings: Settings, environ: Mapping[str, str]) -> bytes:
    """What the entries are sealed with. Nothing is minted here: with another pepper than that of the proxies every
    entry would be wrong, and be deleted."""
    pepper: Secret | None = settings.server.key_pepper
    try:
        pepper = pepper or minted.read(path(environ))
    except OSError:
        pepper = None
    if pepper is None:
        stop(
            "Entries are verified with the pepper of the proxies, which is not here: set server.key_pepper, or ask as "
            "the user that they run as.",
            CANNOT_START,
        )
    return of_answers(pepper)


async def _ask_redis(question: Question, team: str | None, settings: Settings, secret: bytes) -> Mapping[str, int]:
    backend = RedisCache(
        settings.store.url,
        settings.cache.bounds,
        secret,
        owner=secrets.token_hex(6),
        log=_nobody,
        wall=unix_milliseconds,
        monotonic=time.monotonic,
    )
    await backend.start()
    try:
        return await question.work(backend, team)
    finally:
        await backend.close()


def _nobody(level: str, event: str, **fields: Any) -> None:
    """What a log would be told is in the exit code."""
