"""Embeddings: unit vectors made from a hash of the text, so that the same text always has the same vector."""

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from proxy.simulator.conversation import inputs, tokens_of
from proxy.simulator.models import Model

#: output_dtype -> how a unit vector is written; the binary kinds pack eight signs into a byte
_DTYPES: Mapping[str, Callable[[list[float]], list[Any]]] = {
    "float": lambda vector: vector,
    "int8": lambda vector: [round(x * 127) for x in vector],
    "uint8": lambda vector: [round(x * 127) + 128 for x in vector],
    "binary": lambda vector: [byte - 128 for byte in _signs(vector)],
    "ubinary": lambda vector: list(_signs(vector)),
}


def vector(text: str, dimensions: int) -> list[float]:
    """Half-precision numbers, as in the API's answers: they survive a trip through float32 unchanged."""
    raw = struct.unpack(f"<{dimensions}h", hashlib.shake_256(text.encode()).digest(2 * dimensions))
    length = math.hypot(*raw)
    return list(struct.unpack(f"<{dimensions}e", struct.pack(f"<{dimensions}e", *(x / length for x in raw))))


def _signs(vector: list[float]) -> bytes:
    bits = "".join("1" if x > 0 else "0" for x in vector)
    return bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))


def tokens(request: dict[str, Any]) -> int:
    """What the texts cost."""
    return sum(map(tokens_of, inputs(request)))


def answer(request: dict[str, Any], model: Model, *, digest: bytes) -> bytes:
    """The body of the answer. Numbers whatever encoding was asked for: the API's schema knows no other form."""
    texts = inputs(request)
    dimensions = request.get("output_dimension") or model.dimensions
    written = _DTYPES[request.get("output_dtype", "float")]
    total = tokens(request)
    data = [
        {"object": "embedding", "embedding": written(vector(text, dimensions)), "index": index}
        for index, text in enumerate(texts)
    ]
    usage = {
        "prompt_tokens": total,
        "total_tokens": total,
        "completion_tokens": 0,
        "request_count": None,
        "prompt_audio_seconds": None,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
        "service_tier": None,
    }
    body = {"id": digest[:16].hex(), "object": "list", "data": data, "model": request["model"], "usage": usage}
    return msgspec.json.encode(body)
