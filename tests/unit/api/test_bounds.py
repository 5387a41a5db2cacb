"""Every text, list, number and object that a request can hold has a bound, which the document says."""

from collections.abc import Iterator
from typing import Any

import pytest

from api.app import create_app
from core.settings import Settings

OF_TEXT = {"maxLength", "enum", "const", "pattern", "format"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def inputs(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema of each parameter and each JSON body, with its place."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", []):
                found = resolved(document, parameter)
                if found["in"] != "path":  # bounded with the request's line
                    yield f"{where} {found['name']}", found["schema"]
            body = resolved(document, operation.get("requestBody", {}))
            for kind, content in body.get("content", {}).items():
                if kind == "application/json":
                    yield where, content["schema"]


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def unbounded(document: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
    schema = resolved(document, schema)
    kinds = schema.get("type", [])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if "string" in kinds and not OF_TEXT & schema.keys():
        yield f"{where}: text"
    if "array" in kinds:
        if "maxItems" not in schema:
            yield f"{where}: list"
        yield from unbounded(document, schema.get("items", {}), f"{where}[]")
    if kinds & {"integer", "number"} and not {"maximum", "exclusiveMaximum", "enum", "const"} & schema.keys():
        yield f"{where}: number"
    for name, part in schema.get("properties", {}).items():
        yield from unbounded(document, part, f"{where}.{name}")
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        if "maxProperties" not in schema:
            yield f"{where}: object"
        yield from unbounded(document, more, f"{where}.*")
    for choice in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(choice, []):
            yield from unbounded(document, part, where)


def test_every_input_has_a_bound(document: dict[str, Any]) -> None:
    found = [problem for where, schema in inputs(document) for problem in unbounded(document, schema, where)]
    assert sorted(set(found)) == []


def test_unbounded_inputs_are_found() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": ["array", "null"], "items": {"type": "integer"}},
            "c": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 3}},
            "d": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "number"}]},
        },
    }
    found = list(unbounded({}, schema, "x"))
    assert found == ["x.a: text", "x.b: list", "x.b[]: number", "x.c: object", "x.d: number"]
