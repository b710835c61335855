"""Embeddings over HTTP."""

import math
import struct
from typing import Any

import httpx2
import pytest

from proxy.simulator.embeddings import vector


async def embed(http: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/v1/embeddings", json={"model": "mistral-embed", "input": "a", **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_whole_shape(http: httpx2.AsyncClient) -> None:
    answer = await embed(http, input=["one text", "another", "one text"])
    assert (answer["object"], answer["model"], len(answer["id"])) == ("list", "mistral-embed", 32)
    assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", i) for i in range(3)]
    first, second, third = (row["embedding"] for row in answer["data"])
    assert first == third != second
    assert len(first) == 1024
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 3 + 2 + 3


@pytest.mark.parametrize("text", ["", "a", "🌍" * 500])
def test_a_vector_has_unit_length_and_survives_float32(text: str) -> None:
    found = vector(text, 1024)
    assert math.hypot(*found) == pytest.approx(1, abs=2e-3)
    assert list(struct.unpack("<1024f", struct.pack("<1024f", *found))) == found


@pytest.mark.parametrize(
    ("fields", "length", "low", "high"),
    [
        ({}, 1536, -1, 1),
        ({"output_dimension": 64}, 64, -1, 1),
        ({"output_dimension": 64, "output_dtype": "int8"}, 64, -127, 127),
        ({"output_dimension": 64, "output_dtype": "uint8"}, 64, 0, 255),
        ({"output_dimension": 64, "output_dtype": "binary"}, 8, -128, 127),
        ({"output_dimension": 60, "output_dtype": "ubinary"}, 8, 0, 255),
        ({"encoding_format": "base64"}, 1536, -1, 1),
    ],
)
async def test_sizes_and_types(
    http: httpx2.AsyncClient, fields: dict[str, Any], length: int, low: int, high: int
) -> None:
    answer = await embed(http, model="codestral-embed", **fields)
    numbers = answer["data"][0]["embedding"]
    assert len(numbers) == length
    assert low <= min(numbers) <= max(numbers) <= high


async def test_refusals_have_mistrals_shape(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/embeddings", json={"model": "mistral-embed", "input": ["a"] * 257})
    assert answer.status_code == 400
    assert answer.json() == {
        "object": "error",
        "message": "Too many inputs in request, split into more batches.",
        "type": "invalid_request_prompt",
        "param": None,
        "code": "3210",
        "raw_status_code": 400,
    }
