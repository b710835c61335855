"""OpenAI's own client, in front of a proxy."""

from __future__ import annotations

from typing import Any

import httpx2


class Counted(httpx2.Client):
    """How often the SDK has really asked."""

    times = 0

    def send(self, *args: Any, **kwargs: Any) -> httpx2.Response:
        self.times += 1
        return super().send(*args, **kwargs)
