"""Liveness and readiness."""

from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas.base import ResponseBody


class Health(ResponseBody):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


class Readiness(ResponseBody):
    """Everything the service needs answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "database": "ok",
                    "broker": "ok",
                    "store": "ok",
                    "warnings": ["maintenance ended with code 1 and is started again (7 times so far)"],
                    "swept_at": 1795222800,
                }
            ]
        }
    )

    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    broker: Literal["ok"] = "ok"
    store: Literal["ok"] = "ok"
    warnings: list[str] = Field(description="What does not keep the service from working but should be looked at.")
    swept_at: int | None = Field(description="When lost jobs and messages were last looked for.")
