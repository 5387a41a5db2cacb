"""The OpenAPI document is complete, and the reference page loads nothing from elsewhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.openapi import render
from api.schemas.errors import documented_codes
from core.settings import Settings
from tests.integration.api.server import Service

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    document: dict[str, Any] = create_app(Settings()).openapi()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def followed(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node, or the component it refers to."""
    if "$ref" not in node:
        return node
    for name in node["$ref"].removeprefix("#/").split("/"):
        document = document[name]
    return document


def test_the_command_writes_the_applications_document(document: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "api.openapi"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert written == render(document)


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["tags"], where
        assert "422" not in operation["responses"], where


def test_every_error_response_is_the_envelope_with_an_example(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                content = followed(document, response)["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorEnvelope"}, (method, path, status)
                assert content["examples"], (method, path, status)
                for code, example in content["examples"].items():
                    assert followed(document, example)["value"]["error"]["code"] == code, (method, path, status)


def test_every_operation_that_signs_in_can_say_401(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        if path.startswith("/v1/"):
            assert operation["security"] == [{"api_key": []}, {"session": []}], (method, path)
            assert {"400", "401", "503"} <= set(operation["responses"]), (method, path)


def test_every_json_body_and_object_has_an_example(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for method, path, operation in operations(document):
        bodies = [operation.get("requestBody", {}).get("content", {}), operation["responses"]["200"].get("content", {})]
        for content in bodies:
            reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            schema = schemas.get(reference.rpartition("/")[2], {})
            if "data" in schema.get("properties", {}) and schema["properties"].get("object", {}).get("const") == "list":
                continue  # the objects in it have theirs
            assert not reference or schema.get("examples"), (method, path, reference)


def test_error_codes_are_documented_for_people() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = {code for code in documented_codes() if f"`{code}`" not in text}
    assert not missing


def test_reference_page_loads_only_from_here(service: Service) -> None:
    page = httpx.get(f"{service.base_url}/docs")
    policy = page.headers["content-security-policy"]

    assert "script-src 'self';" in policy
    assert "connect-src 'self';" in policy
    assert "//" not in page.text.replace("<!doctype html>", "")
    assert not re.search(r"<script>|\son\w+=", page.text)
    links = re.findall(r'<a[^>]* href="([^"]+)"', page.text)
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        asset = httpx.get(f"{service.base_url}{address}")
        assert asset.status_code == (303 if address in links else 200), address  # pages ask strangers to sign in
    assert httpx.get(f"{service.base_url}/openapi.json").json()["info"]["title"] == "Tunewright"
    home = httpx.get(f"{service.base_url}/")
    assert (home.status_code, home.headers["location"]) == (303, "/sign-in")


def test_every_list_text_and_map_of_a_request_has_a_bound(document: dict[str, Any]) -> None:
    unbounded: list[str] = []
    for method, path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            schema = content["application/json"]["schema"]
            unbounded += _unbounded(document["components"]["schemas"], schema, f"{method} {path}", ())
    assert unbounded == []


def _unbounded(
    schemas: dict[str, Any], schema: dict[str, Any], where: str, seen: tuple[str, ...], outer: tuple[str, ...] = ()
) -> Iterator[str]:
    """Where a schema takes as much as one sends. `outer`: the bounds that stand around its alternatives."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from _unbounded(schemas, schemas[name], name, (*seen, name))
        return
    bounds = {*schema, *outer}
    for one in (one for kind in ("anyOf", "oneOf", "allOf") for one in schema.get(kind, [])):
        yield from _unbounded(schemas, one, where, seen, tuple(bounds))
    rest, items = schema.get("additionalProperties"), schema.get("items")
    needed = {"array": {"maxItems"}, "string": {"maxLength", "enum", "const", "pattern", "format"}}
    is_open = any(kind in str(schema.get("type")) and not bounds & names for kind, names in needed.items())
    if is_open or (isinstance(rest, dict) and "maxProperties" not in bounds):
        yield where
    parts = [*schema.get("properties", {}).items(), ("[]", items), ("{}", rest)]
    for name, one in parts:
        if isinstance(one, dict):
            yield from _unbounded(schemas, one, f"{where}.{name}", seen)
