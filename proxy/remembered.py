"""`GET /admin/explain/{id}`: what became of a request, for as long as it is remembered (core/records.py)."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from proxy.admin import Resource, query
from proxy.core import json
from proxy.core.errors import UnknownRequest
from proxy.core.overhead import in_microseconds
from proxy.core.records import Records
from proxy.core.success import send_json

PATH = "/admin/explain/{id}"


def resource(records: Records, wall: Callable[[], int]) -> Resource:
    """`wall` gives Unix milliseconds."""
    return Resource(PATH, ("GET",), Remembered(records, wall))


class Remembered:
    def __init__(self, records: Records, wall: Callable[[], int]) -> None:
        self._records = records
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query(scope, frozenset())
        record = await self._records.find(scope["path_params"]["id"], self._wall)
        if record is None:
            raise UnknownRequest(
                "No request of this id has ended within the last hour, or too many have since to remember it."
            )
        if "took" in record:
            record["stages_us"] = in_microseconds(record.pop("took"))
        await send_json(send, json.encode(record), (b"cache-control", b"no-store"))
