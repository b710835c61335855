"""Reads the body of a request: JSON of which all readers understand the same, and that costs no more than it is long.

msgspec reads it, and refuses most of what it must (its texts are below, in `_COMPLAINTS`). What it would let pass is
looked for besides, each fault in two steps. The cheap look is taken at every body, and errs on one side only: it may
suspect a body that has no fault, and never clears one that has. So the costly look, which is exact, is left for the
few bodies that are under suspicion.

    what is refused             cheap look                                      costly look
    more than MOST_VALUES       count commas and opening brackets, in           count those outside of strings
                                strings too
    deeper than DEEPEST         there are no more of them than that             go through arrays and objects
    integers from LARGEST on    no 20 digits in a row, when other characters    go through the values
                                than digits , [ { are left out
    a key twice at the top      the lengths of the members add up to that of    go through the members
                                the body: a key has one of them here, its last

Values are counted before anything is made of the body: one costs up to 100 bytes of memory, and 4 µs of everybody's
time, however short it is written. All cheap looks together cost 2 µs for a body of 600 bytes, and somewhat more than
reading it for a long one. A costly look is bounded too: by MOST_VALUES, by MOST_KEYS, or by a few passes over the body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import msgspec

from proxy.core.json import Data, Json, Malformed, count_values, outside_of_strings

DEEPEST = 64
"""Arrays and objects inside each other, the outermost one counted."""

MOST_VALUES = 1 << 16
"""Commas and opening brackets outside of strings. Without a limit 32 MB of `[],` would be a gigabyte and half a
minute."""

MOST_KEYS = 1024
"""Members of the outermost object."""

LONGEST_KEYS = 1 << 14
"""Characters of all their keys together."""

LARGEST = 2**64
"""Integers are smaller than this in magnitude, which both 64-bit kinds of tool schemas are."""


class NotUtf8(Malformed):
    """Another encoding, a byte order mark, or half of a surrogate pair."""


class TooDeep(Malformed):
    """Nested deeper than DEEPEST."""


class TooLarge(Malformed):
    """More than MOST_VALUES values, MOST_KEYS keys, or LONGEST_KEYS of their text."""


class OutOfRange(Malformed):
    """NaN, Infinity, a number that no float holds, or an integer of LARGEST or more."""


class Duplicate(Malformed):
    """The same key twice at the top level. `key` is the client's text."""

    def __init__(self, key: str) -> None:
        super().__init__("the same key stands twice at its top level")
        self.key = key


_read = msgspec.json.Decoder().decode
_read_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse(data: Data) -> Json:
    """The object in `data`. Raises Malformed, mostly one of its kinds; a body with several faults is told one."""
    marks = data.translate(_AS_MARKS, _NO_MARKS)
    many = marks.count(b",")
    if many > MOST_VALUES:
        _check_number_of_values(data)
    try:
        body = _read(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _reason(data, error) from None
    if type(body) is not dict:
        raise Malformed("it is not a JSON object")
    if many > DEEPEST and _is_deep(body):
        raise _too_deep()
    if len(marks) - many >= _LONG and b"0" * _LONG in marks:
        _check_integers(body)
    _check_keys(data)
    return body


_AS_MARKS = bytes.maketrans(b"123456789[{", b"000000000,,")
_NO_MARKS = bytes(set(range(256)) - set(b"0123456789,[{"))
"""Of a body only two marks are left: `0` for each digit, and `,` for what comes once for each value."""

_LONG = len(str(LARGEST))


# Values, and how deep they are.

_BEGINNING = 1 << 20


def _check_number_of_values(data: Data) -> None:
    for part in (data[:_BEGINNING], data):  # short values, which cost the most for their length, are soon too many
        outside = outside_of_strings(part, MOST_VALUES)
        if count_values(outside) > MOST_VALUES:
            raise _too_deep() if _depth(outside) > DEEPEST else TooLarge(f"it has more than {MOST_VALUES} values")


_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - set(_STEPS))


def _depth(outside: bytes) -> int:
    """Of brackets that are perhaps never closed; the first MOST_VALUES of them decide."""
    brackets = outside.translate(None, _NO_BRACKETS)[:MOST_VALUES]
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


_CONTAINERS = frozenset({dict, list})


def _is_deep(body: Json) -> bool:
    level: list[Any] = [body]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _CONTAINERS
        ]
        if not level:
            return False
    return True


def _check_integers(body: Json) -> None:
    if any(type(one) is int and abs(one) >= LARGEST for one in _leaves(body)):
        raise OutOfRange("it has an integer of more than 64 bits")


def _leaves(body: Json) -> Iterator[Any]:
    waiting: list[Iterable[Any]] = [body.values()]
    while waiting:
        for one in waiting.pop():
            if type(one) is dict:
                waiting.append(one.values())
            elif type(one) is list:
                waiting.append(one)
            else:
                yield one


# Keys.


def _check_keys(data: Data) -> None:
    """Two cheap looks: the second one is at the same body without spaces between its values."""
    if not _add_up(_read_members(data), len(data)):
        plain = msgspec.json.format(bytes(data), indent=-1)
        members = _read_members(plain)
        if not _add_up(members, len(plain)):
            _go_through(plain, members)


def _add_up(members: dict[str, msgspec.Raw], size: int) -> bool:
    """Whether these, the last one of each key, are all that an object of so many bytes has. Raises TooLarge."""
    keys = sum(map(len, members))
    if keys > LONGEST_KEYS or len(members) > MOST_KEYS:
        raise TooLarge(f"it has more than {MOST_KEYS} keys at its top level, or too long ones")
    # Besides keys and values there is a bracket, and for each of them two quotes, a colon, and a comma or a bracket.
    return 1 + keys + sum(map(len, members.values())) + 4 * len(members) == size or not members


_KEY = re.compile(rb'[{,]("[^"\\]*+(?:\\.[^"\\]*+)*+"):')


def _go_through(plain: bytes, members: dict[str, msgspec.Raw]) -> None:
    """A key has come before, or has another value than its last one: it is there twice."""
    at, seen, key = 0, set(), ""
    while at < len(plain) - 1:
        found = _KEY.match(plain, at)
        if found is None:  # behind a number that only began like the last one of its key
            raise Duplicate(key)
        key = _read(found[1])
        if key in seen or not plain.startswith(members[key], found.end()):
            raise Duplicate(key)
        seen.add(key)
        at = found.end() + len(members[key])


# What is wrong with it.

_COMPLAINTS = {
    "number": "out of range",  # Number out of range; Integer value out of range
    "half pair": "surrogate",  # JSON is malformed: invalid utf-16 surrogate pair (byte 12)
    "end": "truncated",  # Input data was truncated
}
"""What stands in the texts of msgspec's DecodeError, by what is wrong. The texts are no part of its interface: these
are those of 0.22, to which pyproject.toml holds it, and tests/core/test_strict_json.py has a case for each."""

_PLACE = re.compile(r"\(byte (\d+)\)")
"""Where the fault is, if it is none of numbers and not the end."""

_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u)(?s:.)")
_LONGEST_ESCAPE = 12


def _reason(data: Data, error: Exception) -> Malformed:
    """msgspec's complaint in our terms. A document can have several faults; the first it met is told."""
    if isinstance(error, RecursionError):
        return _too_deep()
    text = str(error)
    if _COMPLAINTS["number"] in text:
        return OutOfRange("it has a number that is too large")
    return _encoding_fault(data, text) or _syntax_fault(data, text)


def _too_deep() -> TooDeep:
    return TooDeep(f"its arrays and objects are nested more than {DEEPEST} deep")


def _encoding_fault(data: Data, text: str) -> NotUtf8 | None:
    if data.startswith(b"\xef\xbb\xbf"):
        return NotUtf8("it begins with a byte order mark")
    try:
        str(data, "utf-8")
    except UnicodeDecodeError as error:
        return NotUtf8(f"it is not UTF-8 (byte {error.start})")
    if b"\0" in data[:4]:
        return NotUtf8("it is UTF-16 or UTF-32")
    # Behind a first half msgspec wants the second, even if that is more than is left.
    ends = _COMPLAINTS["end"] in text and _HALF_PAIR.search(data, max(0, len(data) - _LONGEST_ESCAPE))
    return NotUtf8("it has half of a surrogate pair") if ends or _COMPLAINTS["half pair"] in text else None


def _syntax_fault(data: Data, text: str) -> Malformed:
    place = _PLACE.search(text)
    if place is None:  # it ends too early
        deep = _depth(outside_of_strings(data, MOST_VALUES)) > DEEPEST
        return _too_deep() if deep else Malformed(f"it ends too early (byte {len(data)})")
    if data.startswith((b"NaN", b"Infinity"), int(place[1])):
        return OutOfRange("NaN and Infinity are no numbers of JSON")
    return Malformed(text)
