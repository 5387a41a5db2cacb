"""Liveness and readiness."""

from typing import Literal

from pydantic import ConfigDict

from api.schemas.base import ResponseBody


class Health(ResponseBody):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


class Readiness(ResponseBody):
    """Everything the service needs answers."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": "ready", "database": "ok", "broker": "ok", "store": "ok"}]}
    )

    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    broker: Literal["ok"] = "ok"
    store: Literal["ok"] = "ok"
