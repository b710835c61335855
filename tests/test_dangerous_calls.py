"""Calls that are wrong wherever they stand in this program: none of them is in it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = sorted((Path(__file__).parents[1] / "proxy").rglob("*.py"))

DANGEROUS = {
    "request.url": "made of the Host header and decoded again: a decision on it is the client's (CVE-2026-48710)",
    "request.base_url": "made of the Host header",
    "pickle": "runs what it reads",
    "marshal": "runs what it reads",
    "eval": "runs what it reads",
    "exec": "runs what it reads",
    "os.system": "runs what it reads",
    "traceback.format_exc": "quotes requests and keys",
    "yaml.unsafe_load": "runs what it reads",
    "yaml.full_load": "runs what it reads",
}
UNSAFE = "yaml.load without a safe loader"
ARGUMENTS = {
    ("verify", False),
    ("trust_env", True),
    ("verify_ssl", False),
    ("ssl", False),
    ("shell", True),
    ("debug", True),
}


def named(node: ast.AST) -> str:
    """`a.b` for the name or attribute that this is; also the module that an import names."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    if isinstance(node, ast.alias):
        return node.name
    return node.id if isinstance(node, ast.Name) else ""


def found(text: str) -> set[str]:
    """What of it stands in a source text."""
    here = set()
    for node in ast.walk(ast.parse(text)):
        here.add(named(node))
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            here |= {f"{name}={value}" for name, value in ARGUMENTS if (node.arg, node.value.value) == (name, value)}
        if isinstance(node, ast.Call) and named(node.func) == "yaml.load":
            safe = len(node.args) == 2 and "Loader" in named(node.args[1])
            here |= set() if safe else {UNSAFE}
    return here & {*DANGEROUS, UNSAFE, *(f"{name}={value}" for name, value in ARGUMENTS)}


@pytest.mark.parametrize("file", SOURCE, ids=lambda file: "/".join(file.parts[file.parts.index("proxy") :]))
def test_c3_none_is_in_the_source(file: Path) -> None:
    assert not found(file.read_text("utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "request.url.path",
        "import pickle",
        "x(verify=False)",
        "yaml.load(a)",
        "yaml.load(a, b)",
        "eval(x)",
        "C(trust_env=True)",
    ],
)
def test_c3_they_would_be_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize("text", ["x(verify=True)", "yaml.load(a, Loader)", "upstream.url", "trust_env=False"])
def test_c3_and_nothing_else(text: str) -> None:
    assert not found(text)
