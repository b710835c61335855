"""Two requests have the same key if their answers are the same, and only then. What goes wrong here gives somebody the
answer to what somebody else has asked."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.core import cache_key
from proxy.core.cache_key import EVERYBODY, ORDERED, UNSAID, Keys, canonical, team_of
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.strict_json import parse
from proxy.core.table import Context

MODEL: Final = Model("m")
INERT: Final = frozenset(("stream", "user"))
KEYS: Final = Keys(b"secret", "chat", ("mistral", "https://api.mistral.ai"), INERT)


def context(*, strict: bool = False, **notes: Any) -> Context:
    return Context(model=MODEL, asked={}, strict=strict, notes=notes)


def key(body: Json, scope: str = "red") -> str:
    return KEYS.key(scope, body, context())


# Any JSON that a request can be.

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.one_of(TEXT, st.sampled_from(["a", "b", "parameters", "schema", "stream", "user", "model", "temperature"]))
NUMBERS = st.one_of(
    st.integers(-10, 10),
    st.integers(-(2**64) + 1, 2**64 - 1),
    st.integers(-(10**6), 10**6).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 0.5, 1e16, 1e22, 1e300, 2.0**53, 2**53 + 1, 5e-324]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=5)


# An oracle that is as simple as can be: a value of Python that is equal for what means the same, and for nothing else.


def meaning(value: Any, *, ordered: bool = False) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__, value
    if isinstance(value, int | float):
        return "number", Decimal(value)  # exact, and -0 == 0
    if isinstance(value, list):
        return "list", tuple(meaning(one, ordered=ordered) for one in value)
    members = [(name, meaning(one, ordered=ordered or name in ORDERED)) for name, one in value.items()]
    return ("in order", tuple(members)) if ordered else ("object", frozenset(members))


def without_inert(body: Json, inert: frozenset[str] = INERT) -> Json:
    """And without what is said by saying nothing."""
    unsaid = {name for name, value in UNSAID.items() if name in body and meaning(body[name]) == meaning(value)}
    return {name: value for name, value in body.items() if name not in inert | unsaid}


@settings(max_examples=500)
@given(BODIES, BODIES)
def test_the_same_is_written_the_same_and_nothing_else_is(one: Json, other: Json) -> None:
    same = meaning(without_inert(one)) == meaning(without_inert(other))
    assert (canonical(one, INERT) == canonical(other, INERT)) is same
    assert (key(one) == key(other)) is same


@given(BODIES)
@example({"stream": False})
def test_what_is_written_can_be_read_and_means_the_same(body: Json) -> None:
    written = canonical(body)
    assert meaning(json.loads(written)) == meaning(without_inert(body, frozenset()))
    assert canonical(json.loads(written)) == written
    assert canonical(body) == written


@given(BODIES)
def test_the_body_is_left_as_it_is(body: Json) -> None:
    before = copy.deepcopy(body)
    key(body)
    canonical(body)
    assert json.dumps(body) == json.dumps(before)


# What makes a difference.


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in this one, itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from places(one, (*path, name))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


NOT_EMPTY = st.dictionaries(NAMES, VALUES, min_size=1, max_size=5)


@settings(max_examples=300)
@given(NOT_EMPTY, VALUES, st.data())
def test_any_other_value_anywhere_is_another_request(body: Json, value: Any, data: st.DataObject) -> None:
    changed = copy.deepcopy(body)
    path = data.draw(st.sampled_from([path for path in places(body) if path]))
    ordered = not ORDERED.isdisjoint(path)
    assume(meaning(at(changed, path), ordered=ordered) != meaning(value, ordered=ordered))
    at(changed, path[:-1])[path[-1]] = value
    assert (key(changed) == key(body)) is (path[0] in INERT)


@given(NOT_EMPTY, VALUES, NAMES, st.data())
def test_a_member_or_an_item_more_or_less_is_another_request(
    body: Json, value: Any, name: str, data: st.DataObject
) -> None:
    containers = [path for path in places(body) if isinstance(at(body, path), dict | list)]
    path = data.draw(st.sampled_from(containers))
    changed = copy.deepcopy(body)
    container = at(changed, path)
    if isinstance(container, list):
        container.insert(data.draw(st.integers(0, len(container))), value)
        touched: Any = path[0]
    else:
        assume(name not in container)
        container[name] = value
        touched = path[0] if path else name
    assert (key(changed) == key(body)) is (touched in INERT)


@pytest.mark.parametrize("inside", ["{}", '{"a": [%s]}', '{"parameters": %s}', '{"t": [{"schema": {"x": %s}}]}'])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('"1"', "1"),
        ("true", "1"),
        ("false", "0"),
        ("true", '"true"'),
        ("null", "0"),
        ("null", '""'),
        ("null", '"null"'),
        ("null", "[]"),
        ("null", "false"),
        ("[]", "{}"),
        ("[]", "[[]]"),
        ("[1]", "1"),
        ("[1, 2]", "[2, 1]"),
        ("[1, 2]", "[[1], 2]"),
        ("[12]", "[1, 2]"),
        ('["a", "b"]', '["a,b"]'),
        ('["a\\",\\"b"]', '["a", "b"]'),
        ('{"a": null}', "{}"),
        ('{"a": {"b": 1}}', '{"a": {}, "b": 1}'),
        ('{"a": "b"}', '["a", "b"]'),
        ('"\\u00e9"', '"e\\u0301"'),
        ('"a"', '"a "'),
        ('"a"', '"A"'),
        ('"a"', '"a\\u0000"'),
        ('"a"', '"a\\u200b"'),
        ('"\\n"', '"\\\\n"'),
        ("0.1", "0.10000000000000002"),
        ("1", "-1"),
        ("1", "1.0000000000000002"),
        ("9007199254740993", "9007199254740992"),
        ("18446744073709551615", "18446744073709551614"),
        ("18446744073709551615", "1.8446744073709552e19"),
        ("1e300", "1.0000000000000002e300"),
        ("0", "5e-324"),
        ('{"stream": 1}', "{}"),
    ],
)
def test_what_is_not_the_same(inside: str, one: str, other: str) -> None:
    def made(value: str) -> str:
        return key(parse((inside % value if "%" in inside else f'{{"v": {value}}}').encode()))

    assert made(one) != made(other)
    assert made(one) == made(one)


def test_composed_and_decomposed_text_differ_in_names_too() -> None:
    name = "caf\u00e9"
    assert key({name: 1}) != key({unicodedata.normalize("NFD", name): 1})


@pytest.mark.parametrize("value", [None, False, 0, 1, "", [], {}])
def test_absent_is_nothing_else(value: Any) -> None:
    assert key({"a": 1, "b": value}) != key({"a": 1})
    assert key({"b": value, "stream": True}) == key({"b": value})


# What makes none.


def shuffled(value: Any, random: Any, *, ordered: bool = False) -> Any:
    """With the members of objects in another order, but where that matters."""
    if isinstance(value, list):
        return [shuffled(one, random, ordered=ordered) for one in value]
    if not isinstance(value, dict):
        return value
    names = list(value)
    if not ordered:
        random.shuffle(names)
    return {name: shuffled(value[name], random, ordered=ordered or name in ORDERED) for name in names}


def respelled(value: Any, random: Any) -> str:
    """JSON of the same meaning with numbers, texts and white space as somebody else writes them."""
    gap = random.choice(["", " ", "\n\t"])
    if isinstance(value, list):
        return f"{gap}[{','.join(respelled(one, random) for one in value)}{gap}]"
    if isinstance(value, dict):
        members = [f"{gap}{json.dumps(name)}{gap}:{respelled(one, random)}" for name, one in value.items()]
        return f"{gap}{{{','.join(members)}{gap}}}"
    if type(value) in (int, float) and abs(value) < 2**53:
        spelled = [repr(value), f"{Decimal(value):e}"] if value else ["0", "-0", "0.0", "-0.0", "0e7"]
        if value and value == int(value):
            spelled += [f"{int(value)}", f"{int(value)}.0", f"{int(value)}.000", f"{int(value)}0E-1"]
        return gap + random.choice(spelled)
    return gap + json.dumps(value, ensure_ascii=random.random() < 0.5)


@settings(max_examples=300)
@given(BODIES, st.randoms(use_true_random=False))
def test_order_and_spelling_make_no_difference(body: Json, random: Any) -> None:
    other = parse(respelled(shuffled(body, random), random).encode())
    assert canonical(other) == canonical(body)
    assert key(other) == key(body)


@pytest.mark.parametrize("inside", ['{"v": %s}', '{"v": [{"parameters": {"maximum": %s}}]}', '{"schema": [%s]}'])
def test_a_number_is_the_same_however_it_is_spelled(inside: str) -> None:
    for spelled in (
        ["1", "1.0", "1e0", "10E-1", "1.000"],
        ["0", "-0", "0.0", "-0.0", "0e9"],
        ["10000000000000000000", "1e19", "1.0E+19"],
        ["1e300", "10.0e299"],
        ["-2.5", "-25e-1", "-2.50"],
    ):
        assert len({key(parse((inside % one).encode())) for one in spelled}) == 1


def test_a_number_that_no_integer_can_be_is_not_written_as_one() -> None:
    """It would have hundreds of digits."""
    assert canonical({"a": 1e308, "schema": [1e308]}) == b'{"a":1e308,"schema":[1e308]}'


@pytest.mark.parametrize("name", sorted(ORDERED))
def test_the_order_in_a_schema_matters(name: str) -> None:
    one: Json = {
        "type": "object",
        "properties": {"b": {"type": "number"}, "a": {"minimum": 1.0, "x": [{"p": 1, "q": 2}]}},
    }
    keys = {key({"tools": [{"function": {"name": "f", name: one}}]})}
    keys.add(key({"tools": [{"function": {name: one, "name": "f"}}]}))
    assert len(keys) == 1  # outside it does not
    other = copy.deepcopy(one)
    other["properties"] = dict(reversed(other["properties"].items()))
    keys.add(key({"tools": [{"function": {"name": "f", name: other}}]}))
    other = copy.deepcopy(one)
    other["properties"]["a"]["x"][0] = {"q": 2, "p": 1}
    keys.add(key({"tools": [{"function": {"name": "f", name: other}}]}))
    assert len(keys) == 3
    assert key({"elsewhere": {"b": 1, "a": 2}}) == key({"elsewhere": {"a": 2, "b": 1}})


def test_arguments_that_are_no_text_have_an_order() -> None:
    one, other, respelled = ({"arguments": each} for each in ({"b": 1, "a": 2}, {"a": 2, "b": 1}, {"b": 1.0, "a": 2e0}))
    assert canonical(one) != canonical(other)
    assert canonical(one) == canonical(respelled)


def test_arguments_that_are_text_are_text() -> None:
    """And cost no more than any other: mostly they are."""
    call = {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}]}]}
    assert canonical(call) == json.dumps(call, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("said", [{"stream": False}, {"n": 1}, {"n": 1.0}, {"n": 1, "stream": False}])
def test_what_is_said_by_saying_nothing_makes_no_difference(said: Json) -> None:
    assert canonical({"a": 2} | said) == canonical({"a": 2})


@pytest.mark.parametrize("said", [{"stream": True}, {"stream": 0}, {"n": 2}, {"n": True}, {"n": "1"}, {"in": {"n": 1}}])
def test_and_what_says_something_does(said: Json) -> None:
    assert canonical({"a": 2} | said) != canonical({"a": 2})


def test_where_no_row_says_what_a_field_is_all_order_in_it_counts() -> None:
    """It goes to a provider as it is written, and may have a schema anywhere."""
    one, other = {"json": {"b": 1, "a": {"y": 1.0, "x": 2}}}, {"json": {"a": {"x": 2, "y": 1}, "b": 1}}
    for known, same in ((None, True), (frozenset({"guided"}), True), (frozenset({"other"}), False)):
        found = [canonical({"guided": each, "temperature": 0}, frozenset(), known) for each in (one, other)]
        assert (found[0] == found[1]) is same
    respelled = {"json": {"b": 1.0, "a": {"y": 1, "x": 2e0}}}
    none = frozenset({"none"})
    assert canonical({"x": 1, "guided": respelled}, known=none) == canonical({"guided": one, "x": 1.0}, known=none)


def test_only_at_the_top_is_a_member_inert() -> None:
    assert key({"a": 1, "user": "x", "stream": True}) == key({"a": 1, "user": "y"}) == key({"a": 1})
    assert key({"a": {"user": "x"}}) != key({"a": {"user": "y"}})
    assert canonical({"user": 1}) == b'{"user":1}'


# Besides the body.


def test_all_that_bears_on_the_answer_is_in_the_key() -> None:
    body: Json = {"model": "m", "messages": []}
    place = ("mistral", "https://api.mistral.ai")
    keys = [
        key(body),
        key(body, "blue"),
        key(body, "red:1"),
        key(body, EVERYBODY),
        KEYS.key("red", body, context(strict=True)),
        KEYS.key("red", body, context(prefix="x")),
        KEYS.key("red", body, context(prefix="y")),
        KEYS.key("red", body, context(include_usage=True)),
        KEYS.key("red", body, context(include_usage=1)),
        KEYS.key("red", body, context(include_usage=None)),
        KEYS.key("red", body, context(prefix="x", include_usage=True)),
        Keys(b"secret2", "chat", place, INERT).key("red", body, context()),
        Keys(b"secret", "embeddings", place, INERT).key("red", body, context()),
        Keys(b"secret", "chat", ("mistral", "https://example.com"), INERT).key("red", body, context()),
        Keys(b"secret", "chat", ("other", "https://api.mistral.ai"), INERT).key("red", body, context()),
        Keys(b"secret", "chat", place[::-1], INERT).key("red", body, context()),
        Keys(b"secret", "chat", ("mistralhttps://api.mistral.ai",), INERT).key("red", body, context()),
        Keys(b"secret", "chatmistral", place[1:], INERT).key("red", body, context()),
        Keys(b"secret", "chat", (), INERT).key("red", body, context()),
    ]
    digests = {one.partition("/")[2] for one in keys}
    assert len(digests) == len(keys)
    assert all(len(digest) == 64 for digest in digests)


def test_notes_that_the_body_holds_already_are_not() -> None:
    assert KEYS.key("red", {}, context(model="m", asked="alias", defaults={"temperature": 0})) == key({})


def test_another_version_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("mistral", "https://api.mistral.ai")
    for name, value in (("__version__", "0.0.0"), ("FORMAT", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(cache_key, name, value)
            assert Keys(b"secret", "chat", place, INERT).key("red", {}, context()) != key({})
    assert Keys(b"secret", "chat", place, INERT).key("red", {}, context()) == key({})


WORDS = st.text(st.sampled_from('ab"\\/:,[]{}* \n'), max_size=8)


@settings(max_examples=300)
@given(WORDS, WORDS, WORDS, st.integers(0, 8), st.integers(0, 8))
def test_nothing_that_moves_from_one_part_to_the_next_makes_the_same(
    scope: str, note: str, text: str, first: int, second: int
) -> None:
    """The parts together are the same text each time."""
    whole = scope + note + text
    other = whole[:first], whole[first : first + second], whole[first + second :]

    def digest(scope: str, note: str, text: str) -> str:
        return KEYS.key(scope, {text: text}, context(prefix=note)).rpartition("/")[2]

    assert (digest(scope, note, text) == digest(*other)) is ((scope, note, text) == other)
    for between in ("false", "False", "/", "\n", '"', '",false,{"prefix":"'):
        assert digest(scope, between + note, text) != digest(scope + between, note, text)


@given(WORDS, BODIES)
def test_no_scope_can_pretend_to_hold_a_body(scope: str, body: Json) -> None:
    written = canonical(body).decode()
    keys = {
        KEYS.key(f'{scope}",false,{{}}]{written}', {}, context()).rpartition("/")[2],
        KEYS.key(scope, {"x": body}, context()).rpartition("/")[2],
        KEYS.key(f"{scope}{written}", {}, context()).rpartition("/")[2],
        KEYS.key(scope, {written: None}, context()).rpartition("/")[2],
    }
    assert len(keys) == 4


def test_a_key_tells_nothing_of_a_request_and_whose_it_is() -> None:
    assert [team_of(key({}, scope)) for scope in ("red", "red:key_1", EVERYBODY, "")] == ["red", "red", "*", ""]
    assert key({"a": 1}).startswith("red/")
