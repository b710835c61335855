"""Row B14 proved by the kernel: a whole proxy in a network namespace that has a loopback and nothing else.

    scripts/no-egress

Requests full of URLs go through `serve --simulate`. Had the proxy tried to fetch one or to resolve a name, the
namespace would have counted a packet without a route, a datagram, or a connection to the listener that a URL names.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2

from tests.programs import Program

COUNTERS = ("OutNoRoutes", "OutDatagrams", "Ip6OutNoRoutes", "Udp6OutDatagrams")
MODEL = "mistral-small-latest"
URLS = (
    *("http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "https://example.com/a.png"),
    *("http://[fd00:ec2::254]/", "file:///etc/passwd", "ftp://192.0.2.1/", "http://192.0.2.1:8080/x.png"),
)


def counted() -> dict[str, int]:
    """What this network namespace has counted so far."""
    found: dict[str, int] = {}
    lines = Path("/proc/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found |= {name: int(value) for name, value in zip(names.split()[1:], values.split()[1:], strict=True)}
    found |= {name: int(value) for name, value in map(str.split, Path("/proc/net/snmp6").read_text().splitlines())}
    return {name: found[name] for name in COUNTERS}


def requests(port: int) -> list[dict[str, Any]]:
    """Bodies that name a URL wherever one can stand."""
    bodies: list[dict[str, Any]] = []
    for url in (*URLS, f"http://127.0.0.1:{port}/a.png", f"http://localhost:{port}/"):
        image = {"type": "image_url", "image_url": {"url": url}}
        document = {"type": "document_url", "document_url": url}
        file = {"type": "file", "file": {"file_data": url, "filename": url}}
        parts: list[dict[str, Any]] = [image, document, file, {"type": "text", "text": url}]
        bodies += [{"model": MODEL, "messages": [{"role": "user", "content": [part]}]} for part in parts]
        schema = {"type": "object", "$ref": url, "properties": {"a": {"$ref": url}}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        question = {"model": MODEL, "messages": [{"role": "user", "content": url}], "user": url}
        bodies += [question | {"tools": tools}, question | {"base_url": url, "api_base": url}]
    return bodies


def attempts() -> dict[str, int]:
    """How much `counted` grows by one fetch and one name: the proof that it would have seen them."""
    before = counted()
    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), 1),
        lambda: socket.getaddrinfo("example.com", 80),
    ):
        try:
            attempt()
        except OSError:
            continue
    return {name: value - before[name] for name, value in counted().items()}


def main() -> int:
    """0: nothing left the proxy."""
    if set(socket.if_nameindex()) - {(1, "lo")}:
        sys.exit("this network has more than a loopback: use scripts/no-egress")
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as folder:
        listener.setblocking(False)
        program = Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": folder}, cwd=Path(folder))
        url = program.url()
        key = next(line.split()[1] for line in program.out if line.startswith("  key"))
        before = counted()
        with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as client:
            bodies = requests(listener.getsockname()[1])
            statuses = [client.post("/v1/chat/completions", json=body).status_code for body in bodies]
        after = counted()
        program.stop()
        try:
            listener.accept()
            sys.exit("the proxy called the listener that a URL names")
        except BlockingIOError:
            pass
    tried = attempts()
    print(f"{statuses.count(200)} requests answered, {len(statuses) - statuses.count(200)} refused")
    print(f"counted meanwhile: {after}\na fetch and a name, for comparison, add {tried}")
    if not sum(tried.values()) or 200 not in statuses:
        sys.exit("this proves nothing: the counters do not move, or nothing was answered")
    return 0 if after == before else 1


if __name__ == "__main__":
    sys.exit(main())
