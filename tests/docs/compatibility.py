"""Writes docs/compatibility.md from the tables that translate, so that the page cannot say anything else.

python -m tests.docs.compatibility > docs/compatibility.md
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from proxy.core.endpoint import Endpoint, Stream
from proxy.core.provider import MAIN
from proxy.core.table import Row
from proxy.providers import PROVIDERS
from proxy.routes import UNSERVED

HEAD = """\
# Compatibility

What each endpoint does with each field of a request. This page is written from the translation tables in
`proxy/providers/` by `python -m tests.docs.compatibility`; a test compares the two.

*keep*: sent as it is, after its type and range are checked. *rename*, *values*, *inside*, *compute*: sent in Mistral's
form. *drop*: left out, with no effect on the answer. *drop (strict: refuse)*: left out, which may change the answer, so
strict mode refuses it. *refuse*: 400 that names the field. A field that is not listed is left out (strict: refused).
What is dropped, renamed, given another value or repaired is named in the answer's header `x-proxy-rewrites`; what is
the same request in Mistral's form (`functions` as `tools`, a file as a document, a missing `parameters` filled in) is
not. A field whose value is `null` counts as absent.

"""


def page() -> str:
    return HEAD + "\n".join([*_endpoints(), *_unserved()])


OTHERS = """\
## Providers of type `{0}`

What no row names is sent as it is. See [providers](providers.md#providers-of-type-{0}).
"""


def _endpoints() -> Iterator[str]:
    for name, provider in PROVIDERS.items():
        if name != MAIN:
            yield OTHERS.format(name)
        for endpoint in provider.endpoints:
            yield from _endpoint(endpoint, "##" if name == MAIN else "###")


def _endpoint(endpoint: Endpoint, level: str) -> Iterator[str]:
    yield f"{level} {endpoint.method} {endpoint.path}\n"
    yield f"Upstream: `{endpoint.method} {endpoint.upstream}`. Streams: {endpoint.stream.value}.\n"
    if endpoint.stream is Stream.OPTIONAL:
        yield "What is done to a stream is told in [streaming.md](streaming.md).\n"
    if endpoint.request:
        yield "| field | action | upstream | remark |\n|---|---|---|---|"
        for _, alike in groupby(endpoint.request.rows.values(), _fate):
            yield _line(list(alike))
        yield ""


def _fate(row: Row) -> tuple[str, ...]:
    """What is the same for rows that share a line: those that send nothing, for one reason."""
    return (row.action, row.note) if row.action.startswith(("drop", "refuse")) else (row.field,)


def _line(rows: list[Row]) -> str:
    row = rows[0]
    sent = "" if row.action.startswith(("drop", "refuse")) else f"`{row.to or row.field}`"
    fields = ", ".join(f"`{row.field}`" for row in rows)
    remark = "; ".join([row.note] * bool(row.note) + [f"dropped beside `{row.before}`"] * bool(row.before))
    return f"| {fields} | {row.action} | {sent} | {remark.replace('|', chr(92) + '|')} |"


def _unserved() -> Iterator[str]:
    yield "## Not served\n"
    yield "These endpoints of OpenAI's answer 404 with the code `unsupported_endpoint`.\n"
    yield "| endpoint | the nearest thing that works |\n|---|---|"
    for path, nearest in UNSERVED.items():
        yield f"| `{path}` | {nearest} |"
    yield ""


if __name__ == "__main__":
    print(page(), end="")
