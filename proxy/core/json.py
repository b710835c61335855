"""The one place that decides how JSON is read and written.

msgspec: as fast as any for requests of this size, keeps integers beyond 64 bits exact, refuses NaN, Infinity and
lone surrogates, and needs no schema. `decode` is for answers of the upstream; requests are read by core/strict_json.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]
Data = bytes | bytearray

encode = msgspec.json.Encoder().encode

_decoder = msgspec.json.Decoder()


class Malformed(ValueError):
    """The bytes are not one JSON document; the text says where, and never quotes them."""


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


def exceeds(data: Data, most: int) -> bool:
    """Whether there are more values in `data` than `most`: commas and opening brackets outside of strings."""
    return count_values(data) > most and count_values(outside_of_strings(data, most)) > most


def count_values(text: Data) -> int:
    """Commas and opening brackets, wherever they stand."""
    return len(text.translate(None, _NO_VALUE))


_NO_VALUE = bytes(set(range(256)) - set(b",[{"))


def outside_of_strings(data: Data, most: int) -> bytes:
    """What stands outside of strings, exact for as far as `data` is JSON, and for the first `most` values."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")  # of the same length, which is twice as fast
    # A value has two strings at most: its key and itself.
    return b"".join(data.split(b'"', 4 * (most + 2))[::2])
