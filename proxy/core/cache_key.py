"""What two requests must have in common to have the same answer: all of it, and the same scope.

A key is a keyed digest of everything that bears on the answer: who may share it, which endpoint of which provider is
asked, the whole request as the provider would get it, and how its answer is translated back. A field that nobody has
thought of is in it; only those that a row of the endpoint names as inert are not.

What is written differently and means the same has the same key: the order of an object's members, white space, how a
number is spelled (1, 1.0, 1e0), and what is said by saying nothing. The exceptions are JSON schemas (`parameters` of a
tool, `schema` of a response format), since models write the members of their answer in the order in which a schema has
them, and `arguments` of a call that are no text, which a provider writes down as they come. A field that goes to the
provider without a row of ours may hold one anywhere: there all order counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, Final

import msgspec

from proxy import __version__
from proxy.core.json import Json
from proxy.core.strict_json import LARGEST
from proxy.core.table import Context

FORMAT: Final = 1
"""Of keys and entries. Another one, and other versions of the program, know nothing of what this one has kept."""

EVERYBODY: Final = "*"
"""The scope of entries that all teams share. No team can be called so."""

ORDERED: Final = frozenset(("arguments", "parameters", "schema"))
"""Members in whose value all order counts."""

UNSAID: Final[Json] = {"stream": False, "n": 1}
"""Fields and the value that they have where a request says nothing of them, in every API that is spoken here."""

_NOT_OF_THE_ANSWER: Final = frozenset(("model", "asked", "defaults"))
"""Notes of a translation that are in the request by then, or concern the list of models."""

_sorted: Final = msgspec.json.Encoder(order="deterministic").encode
_as_written: Final = msgspec.json.Encoder().encode


def _number(value: float | str) -> int | float:
    """What is written as an integer is smaller than LARGEST, and so is what has to be the same as that."""
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < LARGEST else value


_with_plain_numbers: Final = msgspec.json.Decoder(float_hook=_number).decode


class Keys:
    """Of one endpoint at one provider. `secret` keys the digest, so that whoever sees a key can try no request on it;
    `place` is where the provider is asked, `inert` the fields of its request that do not bear on the answer; `known`
    are those that are understood, if others are sent, too."""

    def __init__(
        self,
        secret: bytes,
        operation: str,
        place: Sequence[str],
        inert: Collection[str],
        known: Collection[str] | None = None,
    ) -> None:
        where = _sorted([FORMAT, __version__, operation, *place])
        self._begun = blake2b(b"%d:%b" % (len(where), where), digest_size=32, key=secret, person=b"cache key")
        self._inert = frozenset(inert)
        self._known = None if known is None else frozenset(known)

    def key(self, scope: str, body: Json, context: Context) -> str:
        """`scope` is who may share the answer; it comes of who is asking, never of the request."""
        notes = {name: value for name, value in context.notes.items() if name not in _NOT_OF_THE_ANSWER}
        digest = self._begun.copy()
        digest.update(_sorted([scope, context.strict, notes]))
        digest.update(canonical(body, self._inert, self._known))
        return f"{scope}/{digest.hexdigest()}"


def canonical(body: Json, inert: frozenset[str] = frozenset(), known: frozenset[str] | None = None) -> bytes:
    """The one way in which this object is written, without its `inert` members. Of those that are not `known` the order
    of all that is in them counts."""
    if not _looked_at(inert).isdisjoint(body):
        body = {name: value for name, value in body.items() if name not in inert and not _is_unsaid(name, value)}
    if known is not None and not known.issuperset(body):
        body = {name: value if name in known else _schema(value) for name, value in body.items()}
    return _sorted(_plain(body) if _is_special(body) else body)


@cache  # there is a set for each endpoint of a provider
def _looked_at(inert: frozenset[str]) -> frozenset[str]:
    """The names of what may have to be left out."""
    return inert | UNSAID.keys()


def _is_unsaid(name: str, value: Any) -> bool:
    """As JSON has it: true is not 1."""
    unsaid = UNSAID.get(name)
    return unsaid is not None and bool(value == unsaid) and isinstance(value, bool) == isinstance(unsaid, bool)


def _is_special(value: Any) -> bool:
    """Whether there is something in it that is not simply written down: a schema, or a number that can be written in
    another way."""
    values = value.values() if type(value) is dict else value
    for one in values:
        kind = type(one)
        if kind is float:
            if one.is_integer():
                return True
        elif (kind is dict or kind is list) and _is_special(one):
            return True
    if type(value) is not dict or ORDERED.isdisjoint(value):
        return False
    return any(type(value.get(name)) in (dict, list) for name in ORDERED)


def _plain(value: Any) -> Any:
    if type(value) is float:
        return _number(value)
    if type(value) is list:
        return [_plain(one) for one in value]
    if type(value) is not dict:
        return value
    return {name: _schema(one) if name in ORDERED else _plain(one) for name, one in value.items()}


def _schema(value: Any) -> msgspec.Raw:
    """Written and read once more: for the numbers, and several times as fast as going through it."""
    return msgspec.Raw(_as_written(_with_plain_numbers(_as_written(value))))


def team_of(key: str) -> str:
    """The team whose entry this is, or EVERYBODY."""
    return key.partition("/")[0].partition(":")[0]
