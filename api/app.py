"""The application: what is opened when it starts, what every request passes, and the routes."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from api import errors, pages
from api.dashboard import PAGES
from api.deps import KeyUses
from api.document import DESCRIPTION, TAGS, build_document
from api.fairness import Callers, FairnessMiddleware
from api.hosts import HostMiddleware
from api.metrics import RequestMetrics, ServiceCollector
from api.middleware import BodyLimitMiddleware, RequestMiddleware
from api.places import UPLOADS_AT_ONCE, StreamPlaces, UploadPlaces
from api.readiness import Readiness
from api.request_heads import HeadLimitMiddleware
from api.routers import (
    account,
    api_keys,
    browser,
    codes,
    credits,
    files,
    health,
    hub_token,
    job_outputs,
    jobs,
    models,
    organization,
    plans,
)
from core.hang_guard import Pulse, end_when_silent
from core.liveness import beat_in_loop
from core.logging import configure_logging
from core.own_process import allow_many_files, keep_private
from core.runtime import open_runtime
from core.settings import Settings
from core.settings_loading import load_settings

OTHER_FILES = 256  # that this process has open: the database's, the store's, requests that are no streams
FILES_OF_A_STREAM = 2  # the client's connection, and the broker's

ROUTERS = (
    *(files, plans, jobs, job_outputs, models, credits, codes, api_keys, hub_token, account, organization),
    *(health, browser),
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The HTTP application. `uvicorn api.app:create_app --factory` serves it.

    Without `settings` this is the service's own process: they are read from the environment, and logging is set up.
    """
    is_own_process = settings is None
    if settings is None:
        settings = load_settings()
        configure_logging(settings.log_level, as_json=settings.log_json)
        keep_private(settings.data_dir)
        # Every request is logged by the middleware; uvicorn's own line would show the tokens of sign-in links.
        logging.getLogger("uvicorn.access").disabled = True
    registry = CollectorRegistry()
    app = FastAPI(
        title="Tunewright",
        version=version("tunewright"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        lifespan=_lifespan(settings, registry, guarded=is_own_process),
    )
    app.state.metrics_registry = registry
    app.state.key_uses = KeyUses()
    app.state.callers = Callers()
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimitMiddleware,
        max_request_bytes=settings.max_request_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        patience_seconds=settings.body_patience_seconds,
    )
    app.add_middleware(FairnessMiddleware, callers=app.state.callers)
    app.add_middleware(HostMiddleware, allowed=settings.allowed_hosts, public_url=settings.public_url)
    app.add_middleware(HeadLimitMiddleware)
    app.add_middleware(RequestMiddleware, metrics=RequestMetrics(registry), unexpected=errors.unexpected)
    errors.register(app)
    browser.mount_assets(app)
    pages.mount_static(app)
    for module in (*ROUTERS, *PAGES):
        app.include_router(module.router)
    app.openapi = lambda: build_document(app)  # type: ignore[method-assign]
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _lifespan(settings: Settings, registry: CollectorRegistry, *, guarded: bool) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runtime = open_runtime(settings)
        app.state.runtime = runtime
        app.state.upload_limiter = anyio.CapacityLimiter(UPLOADS_AT_ONCE)
        app.state.upload_places = UploadPlaces()
        streams = max(1, (allow_many_files() - OTHER_FILES) // FILES_OF_A_STREAM)
        app.state.stream_places = StreamPlaces(settings.max_event_streams, streams)
        app.state.readiness = Readiness(runtime)
        collector = ServiceCollector(runtime, app.state.readiness)
        registry.register(collector)
        pulse = Pulse()
        beating = asyncio.create_task(beat_in_loop(settings.liveness_file, pulse))
        if guarded:
            end_when_silent("event loop", pulse, settings.hang_seconds)
        try:
            yield
        finally:
            beating.cancel()
            registry.unregister(collector)
            runtime.close()

    return lifespan
