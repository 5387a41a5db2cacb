"""For load balancers and Prometheus. No credentials, no secrets."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.schemas.errors import errors
from api.schemas.health import Health, Readiness
from core.errors import ServiceUnavailableError

router = APIRouter(tags=["Health"])


@router.get("/healthz", summary="Is the process alive?")
async def check_health() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", summary="Can the service work?", responses=errors("not_ready"))
def check_readiness(request: Request) -> Readiness:
    """Asks the database, the broker and the artifact store, 4 seconds each; a 503 names those that do not answer."""
    state = request.app.state.readiness.check()
    if state.problems:
        raise ServiceUnavailableError(f"Not ready: {', '.join(state.problems)}.", code="not_ready")
    return Readiness(warnings=state.warnings, swept_at=state.swept_at)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"description": "Text exposition format.", "content": {"text/plain": {}}}},
)
def retrieve_metrics(request: Request) -> Response:
    """Requests by route, queue depth, jobs by state, device memory, training speed, programs and the last sweep."""
    return Response(generate_latest(request.app.state.metrics_registry), media_type=CONTENT_TYPE_LATEST)
