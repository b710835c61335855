"""What OpenAI, and the servers that speak its language, say when they refuse, and the error that each refusal becomes.

error_table.py has the facts and its first fitting row wins; `refusal` is its interpreter.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any

from proxy.core import wording
from proxy.core.errors import Headers, ProxyError, UpstreamFailed, UpstreamRefusal, UpstreamTimeout
from proxy.core.json import Json
from proxy.core.provider import Header
from proxy.core.table import Context, printable
from proxy.providers.openai.error_table import TABLE, Row
from proxy.providers.openai.limits import reset
from proxy.providers.openai.refused import Refused, read
from proxy.providers.refusals import one_line, visible
from proxy.providers.retry_after import advice, asked

_LONGEST_WAIT = 3600
_CLASSES = {502: UpstreamFailed, 504: UpstreamTimeout}


def refusal(status: int, header: Header, body: bytes, context: Context) -> ProxyError:
    """The error for an answer that is no success. Never raises, whatever the body is.

    The provider's own words may quote the request: they go to its sender alone. In strict mode nothing is mended: the
    client has asked to be told instead.
    """
    refused = read(status, header, body)
    row = next(row for row in TABLE if row.fits(refused))
    becomes = row.status or status
    again, wait = _when(status, row, header)
    more: dict[str, Any] = {
        "code": row.code,
        "param": _field(row, refused, context),
        "detail": {"upstream": {"provider": "openai", "status": status, "code": refused.code}},
        "headers": advice(becomes, again, header),
    }
    message = (row.message or _told(refused, context) or wording.REFUSED).replace("{status}", str(status))
    error: ProxyError
    if becomes in _CLASSES:
        error = _CLASSES[becomes](message, billed=False, **more)
    else:
        mend = partial(row.mend, refused) if row.mend and not context.strict else None
        error = UpstreamRefusal(message, status=becomes, type=row.type, mend=mend, **more)
    error.repeat, error.elsewhere, error.key, error.asked = row.repeat, row.elsewhere, row.key, wait
    return error


def _when(status: int, row: Row, header: Header) -> tuple[int | None, float | None]:
    """After how many seconds a repeat may succeed: for the client (see `Row.again`), and as the provider says."""
    said = asked(header)
    if said is not None or status != 429 or row.again is None:
        return row.again, said
    # OpenAI says so even where it sends no retry-after, in words of its own.
    said = reset(header)
    return (row.again, None) if said is None else (min(max(ceil(said), 1), _LONGEST_WAIT), said)


def _field(row: Row, refused: Refused, context: Context) -> str | None:
    if row.param == "messages":
        return next((name for name in ("messages", "input") if name in context.asked), None)
    if row.param:
        return row.param
    if row.message or refused.param is None:  # our own words are about no field
        return None
    return printable(context.redact(refused.param))


def _told(refused: Refused, context: Context) -> str:
    """The provider's own words, on one line."""
    return one_line(context.redact(refused.text))


def mend(error: ProxyError, body: Json) -> tuple[Json, str] | None:
    """A corrected copy of the refused upstream `body`, to be sent once more, and a word for `x-proxy-rewrites` such as
    "mend:max_tokens". None when nothing can be done."""
    mended = error.mend(body) if isinstance(error, UpstreamRefusal) and error.mend else None
    return None if mended is None else (mended, f"mend:{error.param}")


# Rate-limit headers stay behind: their numbers are the central account's, and a team sees its own quota's under the
# same names.
_PASSED_ON = (("x-request-id", b"x-upstream-request-id"),)


def answer_headers(header: Header) -> Headers:
    """The headers of an answer that clients may see, under the names they see."""
    return visible(header, _PASSED_ON)
