"""For load balancers and Prometheus. No credentials, no secrets."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from api.deps import RuntimeDep
from api.schemas.errors import errors
from api.schemas.health import Health, Readiness
from core.errors import ServiceUnavailableError, StoreError

router = APIRouter(tags=["Health"])


@router.get("/healthz", summary="Is the process alive?")
def check_health() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", summary="Can the service work?", responses=errors("not_ready"))
def check_readiness(runtime: RuntimeDep) -> Readiness:
    """Asks the database, the broker and the artifact store; a 503 names those that do not answer."""
    broken = []
    for name, ask, expected in (
        ("database", runtime.database.ping, DBAPIError),
        ("broker", runtime.publisher.ping, RedisError),
        ("store", runtime.store.check, StoreError),
    ):
        try:
            ask()
        except expected as error:
            broken.append(f"the {name} does not answer ({type(error).__name__})")
    if broken:
        raise ServiceUnavailableError(f"Not ready: {', '.join(broken)}.", code="not_ready")
    return Readiness()


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"description": "Text exposition format.", "content": {"text/plain": {}}}},
)
def retrieve_metrics(request: Request) -> Response:
    """Requests by route, queue depth, jobs by state, device memory and training speed."""
    return Response(generate_latest(request.app.state.metrics_registry), media_type=CONTENT_TYPE_LATEST)
