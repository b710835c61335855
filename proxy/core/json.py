"""The one place that decides how JSON is read and written.

msgspec: as fast as any for requests of this size, keeps integers beyond 64 bits exact, refuses NaN, Infinity and
lone surrogates, and needs no schema. `decode` is for answers of the upstream; `parse` is for requests, where two
readers that understand one text differently, or a text that costs more than it is long, would be a way in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import msgspec

Json = dict[str, Any]
Data = bytes | bytearray

DEEPEST = 64
"""Arrays and objects inside each other in a request, the outermost one counted."""

MOST_VALUES = 1 << 16
"""Values in a request: commas and opening brackets outside of strings. A value costs up to 100 bytes of memory and 4 µs
of everybody's time, however short it is written, so 32 MB of `[],` would be a gigabyte and half a minute."""

LARGEST = 2**64
"""Integers in a request are smaller than this in magnitude, which both 64-bit kinds of tool schemas are."""

_decoder = msgspec.json.Decoder()
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()

encode = _encoder.encode


class Malformed(ValueError):
    """The bytes are not one JSON document; the text says where, and never quotes them."""


class NotUtf8(Malformed):
    """Another encoding, a byte order mark, or half of a surrogate pair."""


class TooDeep(Malformed):
    """Nested deeper than DEEPEST."""


class TooLarge(Malformed):
    """More than MOST_VALUES values."""


class OutOfRange(Malformed):
    """NaN, Infinity, a number that no float holds, or an integer of LARGEST or more."""


class Duplicate(Malformed):
    """The same key twice at the top level. `key` is the client's text."""

    def __init__(self, key: str) -> None:
        super().__init__("the same key stands twice at its top level")
        self.key = key


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The document in `data` as dicts, lists, strings, numbers, booleans and None. Raises Malformed."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Malformed(str(error)) from None
    except UnicodeDecodeError:
        raise Malformed("JSON is not valid UTF-8") from None
    except RecursionError:
        raise Malformed("JSON is nested too deeply") from None


def parse(data: Data) -> Json:
    """The object in `data`, if every reader of JSON would read the same. Raises Malformed, mostly one of its kinds.

    A costly look is taken only where a cheap one does not settle it. What is counted comes before what is made.
    """
    marks = data.translate(_MARKS)
    many = marks.count(b"[")
    if many > MOST_VALUES:
        _check_size(data)
    try:
        body = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _reason(data, error) from None
    if type(body) is not dict:
        raise Malformed("it is not a JSON object")
    if many > DEEPEST and _is_deep(body):
        raise _too_deep()
    if _LONG_NUMBER in marks and any(type(one) is int and abs(one) >= LARGEST for one in _leaves(body)):
        raise OutOfRange("it has an integer of more than 64 bits")
    _check_keys(data)
    return body


_MARKS = bytes.maketrans(b"123456789,{", b"000000000[[")
"""Every digit becomes 0, and what comes once for each value becomes `[`."""

_LONG_NUMBER = b"0" * len(str(LARGEST))


# Size and depth.

_MOST_QUOTES = 4 * (MOST_VALUES + 2)  # a value has two strings at most: its key and itself


def _skeleton(data: Data) -> bytes:
    """What stands outside of strings, exact for as far as `data` is JSON, and until there are too many values."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(data.split(b'"', _MOST_QUOTES)[::2])


def _check_size(data: Data) -> None:
    skeleton = _skeleton(data)
    if skeleton.translate(_MARKS).count(b"[") > MOST_VALUES:
        raise _too_deep() if _nesting(skeleton) > DEEPEST else TooLarge(f"it has more than {MOST_VALUES} values")


_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - set(_STEPS))


def _nesting(skeleton: bytes) -> int:
    """How deep it goes, closed or not."""
    brackets = skeleton.translate(None, _NO_BRACKETS)[:MOST_VALUES]
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
    return bool(level)


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

_KEY = re.compile(rb'[{,]("[^"\\]*+(?:\\.[^"\\]*+)*+"):')


def _check_keys(data: Data) -> None:
    """`data` is an object. Raises Duplicate.

    If its members, each key with the last of its values, are the whole document once more, there are no others. It may
    have spaces, and keys with escapes: without the ones, and then past the others, the same is asked again.
    """
    if encode(_members.decode(data)) == data:
        return
    plain = msgspec.json.format(bytes(data), indent=-1)
    members = _members.decode(plain)
    if encode(members) != plain:
        _go_through(plain, members)


def _go_through(plain: bytes, members: dict[str, msgspec.Raw]) -> None:
    at, seen, key = 0, set(), ""
    while at < len(plain) - 1:
        found = _KEY.match(plain, at)
        if found is None:  # behind a number that only began like the one that was read
            raise Duplicate(key)
        key = _decoder.decode(found[1])
        if key in seen or not plain.startswith(members[key], found.end()):
            raise Duplicate(key)
        seen.add(key)
        at = found.end() + len(members[key])


# What is wrong with it.

_PLACE = re.compile(r"\(byte (\d+)\)")
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u)(?s:.)")
_LONGEST_ESCAPE = 12


def _reason(data: Data, error: Exception) -> Malformed:
    """The decoder's complaint in our terms. A document can have several faults; the first it met is told."""
    if isinstance(error, RecursionError):
        return _too_deep()
    text = str(error)
    if "out of range" in text:
        return OutOfRange("it has a number that is too large")
    return _encoding_fault(data, text) or _fault(data, text)


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
    # Behind a first half the decoder wants the second, even if that is more than is left.
    if "surrogate" in text or ("truncated" in text and _HALF_PAIR.search(data, max(0, len(data) - _LONGEST_ESCAPE))):
        return NotUtf8("it has half of a surrogate pair")
    return None


def _fault(data: Data, text: str) -> Malformed:
    place = _PLACE.search(text)
    if place is None:  # it ends too early
        deep = _nesting(_skeleton(data)) > DEEPEST
        return _too_deep() if deep else Malformed(f"it ends too early (byte {len(data)})")
    if data.startswith((b"NaN", b"Infinity"), int(place[1])):
        return OutOfRange("NaN and Infinity are no numbers of JSON")
    return Malformed(text)
