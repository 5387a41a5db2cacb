"""Structured logs: one line per event, with the request or job it belongs to, and never a secret."""

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

# They write a line for each request of theirs, with its whole URL.
_QUIET = (
    *("httpx", "httpx2", "httpcore", "httpcore2", "botocore", "urllib3", "huggingface_hub"),
    *("celery.worker.strategy", "celery.app.trace", "alembic.runtime.migration"),
)
LONGEST_VALUE = 4000  # characters of one value; of a traceback, whose end says what happened, five times as many
_DEEPEST_VALUE = 4  # containers within containers

# Callers decide what is logged, so each expression takes time in proportion to its text, whatever that is.
_SECRET_NAMES = re.compile(r"(?:authorization|api_?key|password|secret|token|cookie|credit_code)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")
_URL_SECRET = re.compile(r"([?&](?:token|signature|x-amz-[a-z-]{1,40})=)[^\s&]+", re.IGNORECASE)
_KEY = re.compile(r"\b(?:tw-|hf_)[A-Za-z0-9_-]{20,}")


def configure_logging(level: str, *, as_json: bool) -> None:
    """Send this process's structlog events and standard-library logs to standard error, in one format."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for quiet in _QUIET:
        logging.getLogger(quiet).setLevel(max(logging.WARNING, root.level))


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what must never reach a log: values named like secrets, passwords and signatures in URLs, API keys.

    What is left is cut to a length that fits a line.
    """
    for name, value in event.items():
        if _SECRET_NAMES.search(name):
            event[name] = "[redacted]"
        elif not name.startswith("_"):  # structlog's own, removed before anything is written
            event[name] = _shortened(name, _without_secrets(value))
    return event


def _without_secrets(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        value = _URL_SECRET.sub(r"\1[redacted]", _URL_PASSWORD.sub(r"\1[redacted]@", value))
        return _KEY.sub("[redacted]", value)
    if value is None or isinstance(value, int | float):
        return value
    if depth < _DEEPEST_VALUE and isinstance(value, Mapping):
        return {
            str(name): "[redacted]" if _SECRET_NAMES.search(str(name)) else _without_secrets(one, depth + 1)
            for name, one in value.items()
        }
    if depth < _DEEPEST_VALUE and isinstance(value, list | tuple | set | frozenset):
        return [_without_secrets(one, depth + 1) for one in value]
    return _without_secrets(str(value))  # an error, a path: their text may hold what no log may


def _shortened(name: str, value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    longest = LONGEST_VALUE * 5 if name == "exception" else LONGEST_VALUE
    text = value if isinstance(value, str) else str(value)
    if len(text) <= longest:
        return value
    cut = f" … {len(text) - longest:,} characters are left out … "
    return text[: longest // 2] + cut + text[-(longest // 2) :]
