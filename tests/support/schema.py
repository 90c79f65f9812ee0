"""As much of JSON Schema as our descriptions use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def faults(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str = ""
) -> Iterator[str]:
    """What is wrong with a value; a key that the schema does not name is, too.

    Args:
        value: Of JSON.
        schema: What it should be.
        root: The whole description, for ``$ref``.
        at: Where the value is.
    """
    if "$ref" in schema:
        schema = follow(schema["$ref"], root)
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {value!r}, which is none of {schema['enum']}"
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else wanted or []
    if names and not any(_is(value, name) for name in names):
        yield f"{at} is {value!r}, not of type {wanted}"
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        yield from (
            f"{at}.{key} is missing" for key in schema.get("required", ()) if key not in value
        )
        for key, one in value.items():
            if key in properties:
                yield from faults(one, properties[key], root, f"{at}.{key}")
            elif others is None:
                yield f"{at}.{key} is not described"
            else:
                yield from faults(one, others, root, f"{at}.{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from faults(one, schema.get("items", {}), root, f"{at}[{number}]")


def follow(ref: str, root: Mapping[str, Any]) -> Any:
    """What a reference leads to."""
    found: Any = root
    for part in ref.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/")]
    return found


def refs(part: Any) -> Iterator[str]:
    """All references in a description."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for one in part.values():
            yield from refs(one)
    elif isinstance(part, list):
        for one in part:
            yield from refs(one)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])
