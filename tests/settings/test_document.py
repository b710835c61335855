from __future__ import annotations

import pytest
import yaml

from proxy.settings import document
from proxy.settings.document import Malformed, Mapping, Node, Refused, Scalar, Sequence, parse


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def both_parsers(request, monkeypatch):
    monkeypatch.setattr(document, "_Loader", getattr(yaml, request.param))


def plain(node: Node) -> object:
    """The tree without its places."""
    match node:
        case Scalar(text):
            return text
        case Sequence(items):
            return [plain(item) for item in items]
        case Mapping(entries):
            return [(entry.key, plain(entry.node)) for entry in entries]
        case Refused():
            return Refused


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (b"", []),
        (b"# nothing\n", []),
        (b"---\n", []),
        (b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", [("a", "1"), ("b", "2")]),
        (b"%YAML 1.1\n---\na: yes\n...\n", [("a", "yes")]),
        (b"a: {b: [off, 0123, 1e3, 2026-01-01, null, ~, 'x', \"y\"]}", None),
        (b"1: a\nnull: b\ntrue: c\n<<: d\n", [("1", "a"), ("null", "b"), ("true", "c"), ("<<", "d")]),
        (b"a: 1\na: 2\n", [("a", "1"), ("a", "2")]),
        (b"a: &x 1\nb: *x\n", [("a", "1"), ("b", Refused)]),
        (b"a: !!python/object/apply:os.system [ls]\nb: !!str 5\nc: ! x\nd: !own {}\n", None),
        (b"- 1\n", ["1"]),
        (b"word", "word"),
    ],
)
def test_the_tree_is_what_was_written(text, tree):
    if tree is None:
        expected = {
            b"a: {": [("a", [("b", ["off", "0123", "1e3", "2026-01-01", "null", "~", "x", "y"])])],
            b"a: !": [("a", Refused), ("b", Refused), ("c", Refused), ("d", Refused)],
        }
        tree = expected[text[:4]]
    assert plain(parse(text, "f")) == tree


def test_quotes_are_remembered():
    root = parse(b"a: 1\nb: '1'\nc: \"\"\nd: |\n  1\ne:\n", "f")
    assert isinstance(root, Mapping)
    scalars = [entry.node for entry in root.entries if isinstance(entry.node, Scalar)]
    assert [scalar.quoted for scalar in scalars] == [False, True, True, True, False]
    assert [scalar.empty for scalar in scalars] == [False, False, False, False, True]


def test_a_value_has_the_line_it_stands_on_and_a_section_the_line_of_its_name():
    root = parse(b"# one\nword:\n  later\nnothing:\n\nsection:\n\n  x: 1\nlist:\n\n- a\n\n- b\n", "f")
    assert isinstance(root, Mapping)
    assert [entry.place.line for entry in root.entries] == [2, 4, 6, 9]
    assert [entry.node.place.line for entry in root.entries] == [3, 4, 6, 9]
    last = root.entries[-1].node
    assert isinstance(last, Sequence)
    assert [item.place.line for item in last.items] == [11, 13]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"a: 1\nb: [1\n", 3, "did not find expected|expected ',' or"),
        (b"a: 'x\n\n", 3, "scanning a quoted scalar that begins on line 1"),
        (b"a:\n\tb: 1\n", 2, "cannot start any token"),
        (b"a: b: c\n", 1, "mapping values are not allowed"),
        (b"a: 1\n---\nb: 2\n", 2, "a second document"),
        (b"a: 1\n...\n---\n", 3, "a second document"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        ("a: 1".encode("utf-16"), 1, "not UTF-8"),
        (b"a: 1\n\nb: \x1b[0m\n", 3, "a control character"),
        (b"? [a]\n: b\n", 1, "a key must be a plain word"),
        (b"a: &x b\n*x : c\n", 2, "a key must be a plain word"),
        (b"!!str a: c\n", 1, "a key must be a plain word"),
        (b"a:\n  " + b"[" * 17 + b"]" * 17, 2, "nested more than 16 levels deep"),
        (b"[" * 400_000, 1, "nested more than 16 levels deep"),
        (b"a: x\n" * 200_001, None, "larger than 1,000,000 bytes"),
        (b"server: {\n port: ${PORT}}\n", 2, None),
        (b"server: {port: ${PORT}}\n", 1, "needs quotes"),
    ],
)
def test_what_cannot_be_read_says_where(text, line, reason):
    with pytest.raises(Malformed, match=reason) as raised:
        parse(text, "f")
    assert raised.value.line == line
    assert "\n" not in raised.value.reason


def test_k3_a_bomb_of_aliases_stays_as_small_as_it_is_written():
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 1000)]
    tree = plain(parse("\n".join(lines).encode(), "f"))
    assert isinstance(tree, list)
    assert tree[999] == ("a999", [Refused, Refused])
