"""Every error, whoever raises it, as the one envelope."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InternalError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from api import frame, pages
from api.middleware import UPLOAD_PATHS
from api.schemas.errors import envelope
from core.db.session import is_away, is_full
from core.errors import (
    AuthenticationError,
    ConflictError,
    DatabaseFullError,
    FileTooLargeError,
    InvalidRequestError,
    LimitReachedError,
    MethodNotAllowedError,
    NotFoundError,
    NotYetError,
    RateLimitError,
    ServiceUnavailableError,
    SlowRequestError,
    StoreFullError,
    TunewrightError,
    UnsupportedMediaTypeError,
)

RETRY_AFTER_SECONDS = 2  # after which asking again may help, where a part of the service is away
_SHOWN_CHARACTERS = 60
_SHOWN_PROBLEMS = 3
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")

log = structlog.get_logger()


def register(app: FastAPI) -> None:
    """Make the app answer every error with the envelope."""
    app.add_exception_handler(TunewrightError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database_away)
    app.add_exception_handler(InternalError, _database_refuses)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(OverflowError, _unstorable)
    app.add_exception_handler(ClientDisconnect, _client_gone)


def error_response(error: TunewrightError) -> JSONResponse:
    """The response that shows an error."""
    headers: dict[str, str] = {}
    if isinstance(error, (ConflictError, LimitReachedError)) and not isinstance(error, NotYetError):
        headers["x-should-retry"] = "false"  # the client would wait and fail again
    if isinstance(error, (NotYetError, RateLimitError)):
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = 'Bearer realm="tunewright"'
    if isinstance(error, (DatabaseFullError, StoreFullError)):
        headers["x-should-retry"] = "false"  # room is made by a person
    elif isinstance(error, ServiceUnavailableError):
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return JSONResponse(envelope(error.body), status_code=error.status, headers=headers)


async def unexpected(request: Request, error: Exception) -> Response:
    """The answer to what nobody foresaw: its request's id for the person, everything else for the log."""
    log.error("unhandled_exception", exc_info=error)
    request_id = request.scope["request_id"]
    said = TunewrightError(f"Something went wrong on our side. The log has the details under request {request_id}.")
    return await _answer(request, said)


async def _answer(request: Request, error: TunewrightError) -> Response:
    """A page for a person's browser, the envelope for everyone else."""
    return await frame.problem_page(request, error) if pages.wants_page(request) else error_response(error)


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, TunewrightError)
    return await _answer(request, error)


async def _database_away(request: Request, error: Exception) -> Response:
    assert isinstance(error, OperationalError)
    if is_full(error):
        log.error("database_full", error=str(error.orig))
        full = DatabaseFullError(
            "The database's disk is full. Nothing of this request was kept; what was there before is. Have its disk "
            "enlarged, then send it again."
        )
        return await _answer(request, full)
    log.error("database_unavailable", error=str(error))
    away = ServiceUnavailableError("The database does not answer. Try again in a moment.", code="database_unavailable")
    return await _answer(request, away)


async def _database_refuses(request: Request, error: Exception) -> Response:
    assert isinstance(error, InternalError)
    if not is_away(error):
        return await unexpected(request, error)
    log.error("database_read_only", error=str(error.orig))
    refused = ServiceUnavailableError(
        "The database takes no writes for now. Nothing of this request was kept; try again in a moment.",
        code="database_unavailable",
    )
    return await _answer(request, refused)


async def _unstorable(request: Request, _error: Exception) -> Response:
    said = InvalidRequestError("A value cannot be stored: it holds a NUL character or is out of range.")
    return await _answer(request, said)


async def _client_gone(_request: Request, _error: Exception) -> JSONResponse:
    # Nobody reads this; the log shows the status.
    return error_response(InvalidRequestError("The client went away in the middle of its request."))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            said = f"Unknown route {request.method} {request.url.path}."
            if pages.wants_page(request):
                said = f"There is no page at {request.url.path}. Its address may be mistyped, or its subject deleted."
            found: TunewrightError = NotFoundError(said, code="unknown_route")
        case 405:
            return await _method_not_allowed(request)
        case 408:
            found = SlowRequestError(str(error.detail))
        case 429:
            found = RateLimitError(str(error.detail))
        case 413:
            is_upload = request.url.path in UPLOAD_PATHS
            found = FileTooLargeError(str(error.detail), code=None if is_upload else "request_too_large")
        case _:
            found = InvalidRequestError(str(error.detail))
    return await _answer(request, found)


async def _method_not_allowed(request: Request) -> Response:
    allowed = ", ".join(method for method in _METHODS if _is_routed(request, method))
    said = f"{request.url.path} does not take {request.method}; it takes {allowed}."
    if pages.wants_page(request):
        said = f"There is no page at {request.url.path}: it only takes what a form sends. Nothing was sent again."
    response = await _answer(request, MethodNotAllowedError(said))
    response.headers["allow"] = allowed
    return response


def _is_routed(request: Request, method: str) -> bool:
    """Starlette's own answer names the methods of one route only, and a path has a route for each."""
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _answer(request, describe(error.errors(), request.headers.get("content-type", "")))


def describe(problems: Sequence[Mapping[str, Any]], content_type: str) -> TunewrightError:
    """Pydantic's findings as one error with plain sentences."""
    first = problems[0]
    if tuple(first["loc"]) == ("body",) and isinstance(first.get("input"), bytes):
        got = repr(content_type) if content_type else "no content type"
        return UnsupportedMediaTypeError(f"Send the body as application/json; got {got}.")
    sentences = [_sentence(problem) for problem in problems[:_SHOWN_PROBLEMS]]
    code = {"json_invalid": "invalid_json", "unknown_field": "unknown_field"}.get(first["type"])
    return InvalidRequestError(" ".join(sentences), code=code, param=_param(first))


def _param(problem: Mapping[str, Any]) -> str | None:
    if problem["type"] == "json_invalid":
        return None
    path = [str(part) for part in problem["loc"][1:]]
    if problem["type"] == "unknown_field":
        path.append(problem["ctx"]["field"])
    return ".".join(path) or None


def _sentence(problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    name = _param(problem) or "The body"
    match problem["type"]:
        case "json_invalid":
            return f"The body is not valid JSON: {context['error']} at character {problem['loc'][-1]}."
        case "unknown_field":
            hint = f" Did you mean {context['nearest']!r}?" if context["nearest"] else ""
            return f"Unknown field {context['field']!r}.{hint}"
        case "missing":
            return f"{name} is required." if _param(problem) else "A JSON body is required."
        case "unstorable_text":
            return f"{name} holds {context['problem']}, which cannot be kept. Leave it out."
        case "value_error":
            return f"{name}: {context['error']}"
    rule = _RULES.get(problem["type"])
    if rule is None:
        return f"{name}: {problem['msg']}."
    return f"{name} must {rule.format(**context)}; got {_shown(problem['input'])}."


_RULES = {
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "dict_type": "be an object",
    "finite_number": "be a finite number",
    "float_type": "be a number",
    "float_parsing": "be a number",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "int_from_float": "be a whole number",
    "int_parsing": "be a whole number",
    "int_type": "be a whole number",
    "less_than": "be below {lt}",
    "less_than_equal": "be at most {le}",
    "list_type": "be a list",
    "literal_error": "be {expected}",
    "model_attributes_type": "be an object",
    "model_type": "be an object",
    "string_pattern_mismatch": "match {pattern}",
    "string_too_long": "have at most {max_length} characters",
    "string_too_short": "have at least {min_length} characters",
    "string_type": "be text",
    "too_long": "have at most {max_length} entries",
    "too_short": "have at least {min_length} entries",
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
