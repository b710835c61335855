"""The one place that decides how JSON is read and written.

msgspec: as fast as any for requests of this size, keeps integers beyond 64 bits exact, refuses NaN, Infinity and
lone surrogates, and needs no schema.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()

encode = _encoder.encode


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
