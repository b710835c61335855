"""The interpreter of translation tables: what each kind of row does, reports and refuses."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.errors import (
    BadRequest,
    InvalidType,
    MissingParameter,
    NumberOutOfRange,
    UnsupportedParameter,
    UnsupportedValue,
)
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.table import (
    ABSENT,
    Context,
    OneOf,
    Row,
    Table,
    array,
    boolean,
    compute,
    drop,
    each,
    gives_way,
    inside,
    inside_each,
    integer,
    keep,
    mapping,
    number,
    printable,
    refuse,
    rename,
    text,
    text_or_texts,
    type_name,
    values,
    verify,
)


def context(*, strict: bool = False) -> Context:
    return Context(Model("m"), {}, strict)


def run(*rows: Row, source: Any, strict: bool = False, **more: Any) -> tuple[Json, list[str]]:
    given = context(strict=strict)
    return Table(*rows, **more).translate(source, given), list(given.rewrites)


def refused(*rows: Row, source: Any, strict: bool = False, path: str = "", **more: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        Table(*rows, **more).translate(source, context(strict=strict), path)
    return caught.value


# Rows.


def test_keep_passes_the_value():
    assert run(keep("a"), source={"a": [1]}) == ({"a": [1]}, [])


def test_rename_says_so():
    assert run(rename("a", "b"), source={"a": 1}) == ({"b": 1}, ["rename:a>b"])


def test_drop_says_so():
    assert run(drop("a", "why"), source={"a": 1}, strict=True) == ({}, ["drop:a"])


def test_drop_for_the_worse_is_refused_in_strict_mode():
    row = drop("a", "there is none", worse=True)
    assert run(row, source={"a": 1}) == ({}, ["drop:a"])
    error = refused(row, source={"a": 1}, strict=True)
    assert isinstance(error, UnsupportedParameter)
    assert (error.param, error.message) == ("a", "'a' is not supported: there is none.")


def test_drop_for_the_worse_allows_a_value_that_asks_for_nothing():
    row = drop("a", "there is none", worse=True, unless=lambda value: value == 0)
    assert run(row, source={"a": 0}, strict=True) == ({}, ["drop:a"])


def test_refuse_names_the_field():
    error = refused(refuse("a", "there is none"), source={"a": 1})
    assert isinstance(error, UnsupportedParameter)
    assert error.param == "a"


def test_refuse_allows_a_value_that_asks_for_nothing():
    assert run(refuse("a", "why", unless=lambda value: value == {}), source={"a": {}}) == ({}, ["drop:a"])


@pytest.mark.parametrize("source", [{"a": 1, "b": 2}, {"b": 2, "a": 1}])
def test_of_two_spellings_one_gives_way_in_whatever_order_they_come(source):
    rows = rename("a", "b", integer()), gives_way("a", keep("b", integer()))
    out, rewrites = run(*rows, source=source)
    assert out == {"b": 1}
    assert sorted(rewrites) == ["drop:b", "rename:a>b"]


def test_of_what_gives_way_nothing_else_is_told():
    assert run(gives_way("b", rename("a", "b")), keep("b"), source={"a": 1, "b": 2}) == ({"b": 2}, ["drop:a"])


def test_a_spelling_by_itself_gives_way_to_nothing():
    assert run(gives_way("a", keep("b")), source={"a": None, "b": 2}) == ({"b": 2}, [])


def test_what_gives_way_is_checked_all_the_same():
    assert refused(keep("a"), gives_way("a", keep("b", integer())), source={"a": 1, "b": "x"}).param == "b"


def test_two_spellings_of_which_none_gives_way_are_no_table():
    with pytest.raises(ValueError, match="neither gives way"):
        Table(rename("a", "b"), keep("b"))


@pytest.mark.parametrize(
    ("value", "out", "rewrites"),
    [("same", {"b": "same"}, []), ("old", {"b": "new"}, ["value:a"]), ("gone", {}, ["drop:a"])],
)
def test_values_map_an_enum(value, out, rewrites):
    row = values("a", {"same": "same", "old": "new", "gone": None}, to="b")
    assert run(row, source={"a": value}) == (out, rewrites)


def test_values_refuse_what_they_do_not_know():
    error = refused(values("a", {"x": "x", "y": "y"}), source={"a": "z"})
    assert isinstance(error, UnsupportedValue)
    assert error.message == "Unsupported value for 'a'. Supported values: 'x', 'y'."


@pytest.mark.parametrize("value", [5, ["x"], {"x": 1}, True])
def test_values_are_strings(value):
    assert isinstance(refused(values("a", {"x": "x"}), source={"a": value}), InvalidType)


def test_inside_translates_an_object_and_names_its_path():
    row = inside("a", Table(keep("b", text)), to="c")
    assert run(row, source={"a": {"b": "x"}}) == ({"c": {"b": "x"}}, [])
    assert refused(row, source={"a": {"b": 1}}).param == "a.b"


def test_inside_each_translates_every_item_and_names_its_place():
    row = inside_each("a", Table(keep("b", text)))
    assert run(row, source={"a": [{"b": "x"}, {"b": None}]}) == ({"a": [{"b": "x"}, {}]}, [])
    assert refused(row, source={"a": [{"b": "x"}, {"b": 1}]}).param == "a[1].b"
    assert refused(row, source={"a": {}}).param == "a"


def test_compute_decides_and_knows_context_and_path():
    def twice(value: Any, given: Context, path: str) -> Any:
        return [given.model.id, path, value]

    assert run(compute("a", twice), source={"a": 1}) == ({"a": ["m", "a", 1]}, [])
    assert run(compute("a", twice, to="b"), source={"a": 1}) == ({"b": ["m", "a", 1]}, [])


def test_compute_may_leave_its_field_out():
    assert run(compute("a", lambda *_: ABSENT), source={"a": 1}) == ({}, [])


@pytest.mark.parametrize("row", [keep("a", text), rename("a", "b", text)])
def test_a_check_that_fails_names_the_field(row):
    error = refused(row, source={"a": 1})
    assert isinstance(error, InvalidType)
    assert error.message == "Invalid type for 'a': expected a string, but got an integer."


# Tables.


def test_null_is_left_out_before_any_row_sees_it():
    assert run(keep("a", text), refuse("b", "why"), source={"a": None, "b": None, "c": None}, strict=True) == ({}, [])


def test_what_no_row_names_is_dropped_or_in_strict_mode_refused():
    assert run(keep("a"), source={"a": 1, "b": 2}) == ({"a": 1}, ["drop:b"])
    assert refused(keep("a"), source={"a": 1, "b": 2}, strict=True).param == "b"


@pytest.mark.parametrize("source", [{}, {"a": None}])
def test_a_required_field_must_be_there(source):
    error = refused(keep("a"), source=source, required=("a",), path="outer")
    assert isinstance(error, MissingParameter)
    assert (error.param, error.message) == ("outer.a", "Missing required parameter: 'outer.a'.")


def test_rules_change_the_finished_object_in_their_order():
    def first(out: Json, _: Context) -> None:
        out["n"] += 1

    def then(out: Json, _: Context) -> None:
        out["n"] *= 10

    assert run(keep("n"), source={"n": 1}, then=(first, then)) == ({"n": 20}, [])


def test_a_field_has_one_row():
    with pytest.raises(ValueError, match="twice"):
        Table(keep("a"), drop("a", "why"))


@pytest.mark.parametrize("source", [None, 5, "x", [], True])
def test_a_table_translates_an_object(source):
    assert refused(source=source, path="a").param == "a"
    assert refused(source=source).param is None


def test_the_source_is_not_changed():
    source = {"a": 1, "b": None, "c": {"d": 2}}
    run(rename("a", "x"), inside("c", Table(rename("d", "y"))), source=source)
    assert source == {"a": 1, "b": None, "c": {"d": 2}}


# One of several tables.

SHAPES = OneOf("type", {"a": Table(keep("type"), keep("x")), "b": Table(values("type", {"b": "c"}))})


def test_one_of_follows_the_table_its_tag_names():
    assert SHAPES.translate({"type": "a", "x": 1}, context()) == {"type": "a", "x": 1}
    assert SHAPES.translate({"type": "b"}, context()) == {"type": "c"}


@pytest.mark.parametrize(
    ("source", "kind", "param"),
    [
        ({"type": "z"}, UnsupportedValue, "p.type"),
        ({}, MissingParameter, "p.type"),
        ({"type": None}, MissingParameter, "p.type"),
        ({"type": ["a"]}, InvalidType, "p.type"),
        (5, InvalidType, "p"),
    ],
)
def test_one_of_names_what_is_wrong_with_its_tag(source, kind, param):
    with pytest.raises(BadRequest) as caught:
        SHAPES.translate(source, context(), "p")
    assert type(caught.value) is kind
    assert caught.value.param == param


def test_one_of_may_have_a_default():
    shape = OneOf("type", SHAPES.shapes, default="a")
    assert shape.translate({"x": 1}, context()) == {"x": 1}
    with pytest.raises(UnsupportedValue) as caught:
        shape.translate({"type": "z"}, context())
    assert caught.value.param == "type"


def test_each_names_the_item_at_fault():
    with pytest.raises(InvalidType) as caught:
        each(SHAPES, [{"type": "a"}, None], context(), "items")
    assert caught.value.param == "items[1]"


# Reports.


def test_list_positions_are_not_reported():
    given = context()
    for at in range(3):
        given.report("drop", f"messages[{at}].content[{at}].x")
    assert list(given.rewrites) == ["drop:messages.content.x"]


@pytest.mark.parametrize("path", ["a b", "a\r\nset-cookie: x", "ü", "", "a" * 81])
def test_a_path_that_does_not_belong_into_a_header_is_hidden(path):
    given = context()
    given.report("drop", path)
    assert list(given.rewrites) == ["drop:?"]


def test_what_was_reported_once_is_not_reported_in_another_spelling():
    given = context()
    for path in ("a", "a[0]", "b c", "b c", "a"):
        given.report("drop", path)
    assert list(given.rewrites) == ["drop:a", "drop:?"]


def test_reports_end_somewhere():
    given = context()
    for number_ in range(1000):
        given.report("drop", f"field{number_}")
    assert len(given.rewrites) == 32


@pytest.mark.parametrize("name", ["\n", "ü", "x" * 500, "a\r\nb", "\t", "\x00\x1b[31m", "\x7f", "\ud800", "\x00" * 500])
def test_a_strange_name_is_printable_in_the_error(name):
    error = refused(source={name: 1}, strict=True)
    assert error.param == printable(name)
    assert error.param.isascii()
    assert error.param.isprintable()
    assert len(error.param) <= 120


def test_no_more_unknown_names_are_looked_at_than_are_told():
    looked: list[str] = []

    def redact(name: str) -> str:
        looked.append(name)
        return name

    given = Context(model=Model("m"), asked={}, redact=redact)
    Table().translate({"x" * 10_000_000: 1, **{f"field{number_}": 1 for number_ in range(10_000)}}, given)
    assert len(looked) == 31
    assert list(given.rewrites)[:2] == ["drop:?", "drop:field0"]


# Checks.


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (boolean, [True, False], [0, 1, "true", None]),
        (text, ["", "a"], [1, None, ["a"]]),
        (array, [[], [1]], [{}, "a", None]),
        (mapping, [{}, {"a": 1}], [[], "a", None]),
        (text_or_texts, ["a", [], ["a", "b"]], [1, ["a", 1], {}, None]),
        (integer(), [0, -5, 10**30], [1.0, True, "1", None]),
        (integer(1, 3), [1, 3], [0, 4, 2.0]),
        (number(), [0, 1.5, -2], [True, "1", None, [1]]),
        (number(-2, 2), [-2, 2.0, 0], [-2.1, 3]),
        (number(0), [0, 0.5], [-0.1]),
        (number(most=1), [1, -5], [1.1]),
    ],
)
def test_checks(check, right, wrong):
    assert [check(value) for value in right] == [None] * len(right)
    assert all(check(value) for value in wrong)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (number(0, 2), 3, "Invalid value for 'p': it must be between 0 and 2."),
        (number(0), -1, "Invalid value for 'p': it must be at least 0."),
        (number(most=1), 2, "Invalid value for 'p': it must be at most 1."),
        (number(0, 2), "x", "Invalid type for 'p': expected a number, but got a string."),
    ],
)
def test_a_wrong_value_and_a_wrong_type_are_told_apart(check, value, message):
    with pytest.raises(BadRequest) as caught:
        verify(check, value, "p")
    assert caught.value.message == message
    assert isinstance(caught.value, InvalidType) == message.startswith("Invalid type")


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**64])
def test_an_integer_that_readers_disagree_on_is_told_apart_where_there_is_a_range(value):
    with pytest.raises(NumberOutOfRange) as caught:
        verify(integer(0, 5), value, "p")
    assert caught.value.param == "p"
    with pytest.raises(BadRequest) as plain:
        verify(integer(0, 5), 2**53, "p")
    assert type(plain.value) is BadRequest


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.5, "a number"),
        ("a", "a string"),
        ([], "an array"),
        ({}, "an object"),
        (object(), "something else"),
    ],
)
def test_types_have_their_json_names(value, name):
    assert type_name(value) == name
