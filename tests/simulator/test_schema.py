"""The interpreter: which problems a value has, and how pydantic would say so."""

from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.schema import Anything, Either, Flag, Items, Model, Node, Number, OneOf, OrNull, Tagged, Text, Uuid

POINT = Model("Point", {"x": Number(whole=True), "label": OrNull(Text())}, must=("x",))
SHAPE = Tagged("kind", {"point": Model("Point", {"kind": OneOf(("point",)), "x": Number()}, must=("x",))})


def found(node: Node, value: Any) -> list[tuple[str, list[str | int]]]:
    return [(entry["type"], entry["loc"]) for entry in node.check(value, ("body",))]


@pytest.mark.parametrize(
    ("node", "good", "bad", "kind"),
    [
        (Text(), "", 1, "string_type"),
        (Uuid(), "3f2b8a52-6c1e-4d7a-9b0e-2f6c1d8e4a90", "file-abc", "uuid_parsing"),
        (Flag(), False, 0, "bool_type"),
        (Number(), 0.5, True, "float_type"),
        (Number(whole=True), 3, "3", "int_type"),
        (Number(whole=True), 3.0, 3.5, "int_from_float"),
        (Number(ge=0), 0, -0.1, "greater_than_equal"),
        (Number(gt=0), 0.1, 0, "greater_than"),
        (Number(le=1.5), 1.5, 1.6, "less_than_equal"),
        (OneOf(("a", "b")), "a", "c", "enum"),
        (OneOf(("a",)), "a", None, "literal_error"),
        (Anything(), {"a": [1]}, [], "dict_type"),
        (Items(Text()), [], {}, "list_type"),
        (Items(Text(), least=1), ["a"], [], "too_short"),
        (POINT, {"x": 1}, 5, "model_attributes_type"),
    ],
)
def test_each_kind_of_node(node: Node, good: Any, bad: Any, kind: str) -> None:
    assert found(node, good) == []
    assert found(node, bad) == [(kind, ["body"])]


def test_all_problems_come_at_once() -> None:
    assert found(Items(POINT), [{"x": "1", "y": 2}, {"label": 5}]) == [
        ("int_type", ["body", 0, "x"]),
        ("extra_forbidden", ["body", 0, "y"]),
        ("missing", ["body", 1, "x"]),
        ("string_type", ["body", 1, "label"]),
    ]


def test_an_open_model_ignores_what_it_does_not_know() -> None:
    assert found(Model("Open", {"x": Text()}, closed=False), {"x": "a", "y": 1}) == []


def test_null_only_where_it_is_allowed() -> None:
    assert found(POINT, {"x": 1, "label": None}) == []
    assert found(POINT, {"x": None}) == [("int_type", ["body", "x"])]


def test_a_union_reports_every_branch_under_its_label() -> None:
    node = Either((Text(), Items(Text())))
    assert found(node, "a") == found(node, ["a"]) == []
    assert found(node, [1]) == [("string_type", ["body", "str"]), ("string_type", ["body", "list[str]", 0])]


@pytest.mark.parametrize(
    ("value", "kind", "loc"),
    [
        ({"kind": "point"}, "missing", ["body", "point", "x"]),
        ({"kind": "circle"}, "union_tag_invalid", ["body"]),
        ({"kind": ["point"]}, "union_tag_invalid", ["body"]),
        ({"x": 1}, "union_tag_not_found", ["body"]),
        ("point", "model_attributes_type", ["body"]),
    ],
)
def test_a_tagged_union_follows_its_tag(value: Any, kind: str, loc: list[str]) -> None:
    assert found(SHAPE, value) == [(kind, loc)]


class _Item(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    x: int = pydantic.Field(ge=0)
    y: float | None = pydantic.Field(default=None, gt=0, le=1.5)
    names: str | list[str] = ""


ITEM = Model(
    "_Item",
    {
        "x": Number(ge=0, whole=True),
        "y": OrNull(Number(gt=0, le=1.5)),
        "names": Either((Text(), Items(Text()))),
    },
    must=("x",),
)
JSON = st.recursive(
    st.sampled_from([None, True, False, -3, 0, 1, 2, 0.5, 1.6, -1.5, "", "a", "7"]),
    lambda inner: st.lists(inner, max_size=2),
)


WHOLE = JSON.filter(lambda value: not isinstance(value, float))  # of fractions strict pydantic speaks differently


@given(st.fixed_dictionaries({}, optional={"x": WHOLE, "y": JSON, "names": JSON, "extra": JSON}))
def test_the_entries_are_those_of_pydantic(value: dict[str, Any]) -> None:
    def key(entry: Any) -> tuple[str, ...]:
        return (*map(str, entry["loc"]), entry["type"])

    try:
        _Item.model_validate(value)
        expected: list[Any] = []
    except pydantic.ValidationError as error:
        expected = [{**entry, "loc": list(entry["loc"])} for entry in error.errors(include_url=False)]
    assert sorted(ITEM.check(value, ()), key=key) == sorted(expected, key=key)
