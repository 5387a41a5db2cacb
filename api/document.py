"""The OpenAPI document."""

from collections import defaultdict
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.schemas.errors import error_examples

DESCRIPTION = """Fine-tuning on your own machines, through OpenAI's fine-tuning API and what it lacks: a plan that is
known to fit before anything starts, with its price and every alternative; pause and resume; the adapter to keep.

`openai.OpenAI(base_url="https://your-host/v1", api_key="tw-…")` works unchanged. Every error is
`{"error": {"message", "type", "param", "code"}}`, and every response carries `x-request-id`."""

TAGS: list[dict[str, Any]] = [
    {"name": "Files", "description": "Data sets, and the results of jobs."},
    {"name": "Plans", "description": "What would be run, on what, how long, for how much, and why."},
    {"name": "Fine-tuning", "description": "Jobs, their events, checkpoints and artifacts."},
    {"name": "Models", "description": "Base models and fine-tuned ones."},
    {
        "name": "Credits",
        "description": "Balance, transactions, codes. A quote is a cap.",
    },
    {"name": "Account", "description": "The caller, its API keys, and its token for the model hub."},
    {"name": "Organization", "description": "Who did what, and what was used."},
    {"name": "Administration", "description": "For keys with the scope `admin`."},
    {"name": "Workers", "description": "The fleet and its devices."},
    {"name": "Health", "description": "For load balancers and Prometheus."},
]
FIRST_ERROR_STATUS = 400
_VALUES = frozenset({"example", "examples", "default", "enum", "const"})  # not schemas, but what they describe
_FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")


def build_document(app: FastAPI) -> dict[str, Any]:
    """The document, with FastAPI's own 422, which this service answers as 400, taken out. Built once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
        )
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in _FASTAPI_ERRORS:
            document["components"]["schemas"].pop(name, None)
        document["components"]["examples"] = error_examples()
        document["components"]["responses"] = _share_errors(document)
        _drop_repetitions(document["paths"])
        _drop_repetitions(document["components"]["schemas"])
        app.openapi_schema = document
    return app.openapi_schema


def _drop_repetitions(node: Any) -> None:
    """Take out of schemas what pydantic says twice: a title made from the name beside it, a parameter's description.

    That a value may be null is said by its types, not by a choice of schemas.
    """
    if isinstance(node, list):
        for child in node:
            _drop_repetitions(child)
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        match node.get("anyOf"):
            case [{"type": str(kind), **rest}, {"type": "null"}] if rest.keys().isdisjoint(_VALUES):
                del node["anyOf"]
                node |= {"type": [kind, "null"], **rest}
        schema = node.get("schema")
        if isinstance(schema, dict) and "description" in node:
            schema.pop("description", None)
        for key, child in node.items():
            if key not in _VALUES:
                _drop_repetitions(child)


def _share_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Have equal error responses of several routes refer to one component, named by its error codes; returns these."""
    uses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                codes = response.get("content", {}).get("application/json", {}).get("examples", {})
                if int(status) >= FIRST_ERROR_STATUS and codes:
                    uses[".".join(codes)].append(response)
    shared = {}
    for name, responses in sorted(uses.items()):
        if len(responses) > 1:
            shared[name] = dict(responses[0])
            for response in responses:
                response.clear()
                response["$ref"] = f"#/components/responses/{name}"
    return shared
