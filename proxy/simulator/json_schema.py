"""JSON Schema as far as the simulator needs it: is this one valid, and what would an instance of it look like."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_KEYWORDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("properties", "definitions"), dict),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "enum", "required", "prefixItems"), list),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), int),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("title", "description", "pattern", "format", "$ref"), str),
    "items": (dict, list, bool),
    "additionalProperties": (dict, bool),
}
_HOLDS_NAMED_SCHEMAS = frozenset({"properties", "definitions"})  # "$defs" is younger than draft 7
_HOLDS_SCHEMAS = frozenset({"items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf"})


def flaws(schema: Any) -> Iterator[str]:
    """What makes this no valid draft-7 schema: unknown types, keywords of the wrong kind, at any depth."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield f"{schema!r} is not of type 'object', 'boolean'"
        return
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            yield f"{kind!r} is not valid under any of the given schemas"
    for keyword, expected in _KEYWORDS.items():
        if keyword not in schema:
            continue
        if isinstance(schema[keyword], expected):
            for nested in _nested(keyword, schema[keyword]):
                yield from flaws(nested)
        else:
            yield f"{schema[keyword]!r} is not a valid {keyword!r}"


def _nested(keyword: str, value: Any) -> list[Any]:
    if keyword in _HOLDS_NAMED_SCHEMAS:
        return list(value.values())
    if keyword in _HOLDS_SCHEMAS:
        return value if isinstance(value, list) else [value]
    return []


_DEEP = 6  # from here on recursive schemas are brought to an end: nulls, empty lists, no optional keys
_BOTTOM = 40  # a schema that still goes on has no finite instance
_HOPS = 10  # references to references

_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "3f2b8a52-6c1e-4d7a-9b0e-2f6c1d8e4a90",
}

_BOUNDS: Mapping[str, Callable[[float, float], bool]] = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}


def instance(schema: Any, root: Any = None, name: str = "text", depth: int = 0) -> Any:
    """A value that is valid under `schema`; the same schema always gives the same value. Strings hold the key's name.

    Understood: types, const, enum, properties, items, prefixItems, anyOf, oneOf (the first branch), allOf, local $ref,
    lengths, bounds, multipleOf and the usual formats. Not understood: pattern, not, if, dependencies, uniqueItems.
    """
    root = schema if root is None else root
    schema = _resolved(schema, root)
    if depth > _BOTTOM:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            rest = {key: value for key, value in schema.items() if key != keyword}
            return instance(_merged(rest, _branch(schema[keyword], depth)), root, name, depth + 1)
    return _MAKERS[_kind(schema)](schema, root, name, depth)


def _resolved(schema: Any, root: Any, hops: int = 0) -> dict[str, Any]:
    """The schema with its $ref and its allOf folded in."""
    if not isinstance(schema, dict) or hops > _HOPS:
        return {}
    parts = [*schema.get("allOf", ()), *([_target(schema["$ref"], root)] if "$ref" in schema else ())]
    whole = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    for part in parts:
        whole = _merged(whole, _resolved(part, root, hops + 1))
    return whole


def _target(reference: str, root: Any) -> Any:
    for key in filter(None, reference.removeprefix("#").split("/")):
        root = root.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(root, dict) else None
    return root


def _merged(one: dict[str, Any], other: Any) -> dict[str, Any]:
    if not isinstance(other, dict):
        return one
    both = {**one, **other}
    if "properties" in one and "properties" in other:
        both["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        both["required"] = [*one["required"], *other["required"]]
    return both


def _branch(branches: list[Any], depth: int) -> Any:
    nulls = [branch for branch in branches if isinstance(branch, dict) and branch.get("type") == "null"]
    others = [branch for branch in branches if branch not in nulls]
    if depth >= _DEEP:
        others.sort(key=lambda branch: isinstance(branch, dict) and bool({"$ref", "properties", "items"} & set(branch)))
        return [*nulls, *others][0]
    return [*others, *nulls][0]


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((one for one in kind if one != "null"), "null")
    if kind is None:
        return "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind)


def _string(schema: dict[str, Any], root: Any, name: str, depth: int) -> str:
    text: str = _FORMATS.get(schema.get("format", ""), name)
    text += "." * (schema.get("minLength", 0) - len(text))
    return text[: schema.get("maxLength", len(text))]


def _number(schema: dict[str, Any], root: Any, name: str, depth: int) -> float:
    step: float = schema.get("multipleOf") or 1
    bounds = [schema[keyword] for keyword in _BOUNDS if keyword in schema]
    near = [(math.floor(bound / step) + shift) * step for bound in bounds for shift in (0, 1, -1)]
    middle = sum(bounds) / max(len(bounds), 1)
    return next((value for value in (step, 0, *near, middle) if _fits(value, schema)), step)


def _fits(value: float, schema: dict[str, Any]) -> bool:
    return all(fits(value, schema[keyword]) for keyword, fits in _BOUNDS.items() if keyword in schema)


def _array(schema: dict[str, Any], root: Any, name: str, depth: int) -> list[Any]:
    first = schema.get("prefixItems", ())
    count = max(schema.get("minItems", 0), len(first), 0 if depth >= _DEEP else 1)
    count = min(count, schema.get("maxItems", count))
    rest = schema.get("items", {})
    if rest is False:
        count = min(count, len(first))
    return [instance(first[i] if i < len(first) else rest, root, name, depth + 1) for i in range(count)]


def _object(schema: dict[str, Any], root: Any, name: str, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    keys = required if depth >= _DEEP else [*properties, *(key for key in required if key not in properties)]
    return {key: instance(properties.get(key, {}), root, key, depth + 1) for key in keys}


_MAKERS: Mapping[str, Callable[[dict[str, Any], Any, str, int], Any]] = {
    "string": _string,
    "integer": _number,
    "number": _number,
    "array": _array,
    "object": _object,
    "boolean": lambda schema, root, name, depth: True,
    "null": lambda schema, root, name, depth: None,
}
