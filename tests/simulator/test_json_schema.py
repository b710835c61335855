"""Schemas: the flaws that are refused, and instances that are valid."""

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.json_schema import flaws, instance


def obj(required: bool = True, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties] if required else []}


NODE = {
    **obj(value={"type": "integer"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}),
    "additionalProperties": False,
}
TREE = obj(children={"type": "array", "items": {"$ref": "#"}}, parent={"$ref": "#"}) | {"required": ["children"]}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "minLength": 8, "maxLength": 9},
        {"type": "string", "maxLength": 2},
        {"type": "string", "format": "date-time"},
        {"type": ["null", "string"]},
        {"type": "null"},
        {"enum": ["red", "green"]},
        {"const": 7},
        {"type": "integer", "minimum": 5},
        {"type": "integer", "exclusiveMaximum": 0},
        {"type": "integer", "minimum": 10, "multipleOf": 7},
        {"type": "number", "exclusiveMinimum": 0.2, "maximum": 0.3},
        {"type": "array", "items": {"type": "string"}, "minItems": 3},
        {"type": "array", "maxItems": 0},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        {"items": {"type": "boolean"}},
        obj(a={"type": "string"}, b=obj(required=False, c={"type": "number"})) | {"additionalProperties": False},
        {"allOf": [obj(a={"type": "string"}), obj(b={"type": "integer"})]},
        {"oneOf": [obj(kind={"const": "a"}), obj(kind={"const": "b"})]},
        obj(n={"$ref": "#/$defs/node"}) | {"$defs": {"node": NODE}},
        {"$ref": "#/definitions/a~1b"} | {"definitions": {"a/b": {"type": "integer"}}},
        TREE,
    ],
)
def test_an_instance_is_valid(schema: dict[str, Any]) -> None:
    assert list(flaws(schema)) == []
    value = instance(schema)
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
    assert value == instance(schema)


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer", "minimum": 3},
            {"type": "number", "maximum": -1},
            {"type": "boolean"},
            {"enum": ["a", None]},
            {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 30}]},
        ]
    ),
    lambda inner: (
        st.builds(lambda item, n: {"type": "array", "items": item, "minItems": n}, inner, st.integers(0, 2))
        | st.builds(
            lambda fields, all_of_them: obj(all_of_them, **fields),
            st.dictionaries(st.sampled_from("abc"), inner),
            st.booleans(),
        )
        | st.builds(lambda one: {"anyOf": [one, {"type": "null"}]}, inner)
    ),
    max_leaves=8,
)


@given(SCHEMAS)
def test_instances_of_nested_schemas_are_valid(schema: dict[str, Any]) -> None:
    jsonschema.validate(instance(schema), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"$ref": "#"}]},
        {"$ref": "#/nowhere"},
        obj(self={"$ref": "#"}),
    ],
)
def test_schemas_without_a_finite_instance_come_to_an_end(schema: dict[str, Any]) -> None:
    instance(schema)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        {"type": "text"},
        {"type": ["string", {}]},
        {"properties": []},
        {"required": "a"},
        {"anyOf": {"type": "string"}},
        {"minItems": "3"},
        {"properties": {"a": {"items": {"type": "text"}}}},
        {"definitions": {"a": 3}},
    ],
)
def test_flaws(schema: Any) -> None:
    assert list(flaws(schema))
    with pytest.raises(jsonschema.SchemaError):
        jsonschema.Draft7Validator.check_schema(schema)
