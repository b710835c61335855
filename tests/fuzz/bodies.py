"""The body of a request: our parser, and one of another make, read the same or both refuse."""

from __future__ import annotations

import json as standard
import math
from typing import Any, NoReturn

from proxy.core import json, strict_json


class Refused(Exception):
    pass


def check(data: bytes) -> None:
    """`data` is the body."""
    assert repr(_ours(data)) == repr(_theirs(data))
    assert repr(_ours(bytearray(data))) == repr(_ours(data))


def _ours(data: bytes | bytearray) -> Any:
    try:
        body = strict_json.parse(data)
    except json.Malformed:
        return None
    assert standard.loads(json.encode(body)) == body
    return body


def _theirs(data: bytes) -> Any:
    try:
        return reference(data)
    except Refused:
        return None


def reference(data: bytes) -> dict[str, Any]:
    """What `data` says by Python's own parser, with the rules that we add. Slow, plain, and without shortcuts."""
    twice = False

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = len({name for name, _ in pairs}) < len(pairs)  # the outermost object comes last
        return dict(pairs)

    try:
        text = data.decode()
        body = standard.loads(text, object_pairs_hook=members, parse_float=_float, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Refused from None
    if not isinstance(body, dict) or twice:
        raise Refused
    _check(body, 1)
    return body


def _refuse(text: str) -> NoReturn:
    raise Refused


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _check(value: Any, depth: int) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise Refused from None
    elif type(value) is int:  # one whose key comes again is never read
        if abs(value) >= 2**64:
            raise Refused
    elif isinstance(value, dict | list):
        if depth > 64:
            raise Refused
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(one, depth + 1)
