"""`tunewright jobs`: the newest jobs, from a service over HTTP or from the database of this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer

from cli.database import DataDirectory, open_database
from cli.terminal import JsonOption, print_list, table_of
from core.accounts.service import ensure_owner
from core.errors import AuthenticationError, ServiceUnavailableError, TunewrightError
from core.jobs.models import Job
from core.jobs.service import list_jobs
from core.settings import Settings
from core.settings_loading import load_settings

UNAUTHORIZED = 401
STATUS_STYLES = {"succeeded": "green", "failed": "red", "running": "cyan", "queued": "yellow"}


@dataclass(frozen=True)
class JobLine:
    """What the list shows of a job."""

    id: str
    status: str
    model: str
    created_at: datetime
    quote: int | None
    charged: int | None


def jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most.")] = 20,
    base_url: Annotated[
        str | None, typer.Option(envvar="TUNEWRIGHT_BASE_URL", help="Ask the service there, with --api-key.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TUNEWRIGHT_API_KEY", help="The key for --base-url.")] = None,
    as_json: JsonOption = False,
    data: DataDirectory = None,
) -> None:
    """List fine-tuning jobs, newest first. Without --base-url, those of the owner of this machine's database."""
    lines = _from_api(base_url, api_key, limit) if base_url else _from_database(load_settings(data), limit)
    table = table_of("Job", "Status", "Model", "Created", "Quote", "Charged")
    for line in lines:
        table.add_row(
            line.id,
            f"[{STATUS_STYLES.get(line.status, 'default')}]{line.status}[/]",
            line.model,
            f"{line.created_at:%Y-%m-%d %H:%M}",
            *("" if credits is None else f"{credits:,}" for credits in (line.quote, line.charged)),
        )
    print_list(table, [asdict(line) for line in lines], as_json, "No jobs yet.")


def _from_database(settings: Settings, limit: int) -> Sequence[JobLine]:
    with open_database(settings) as database:
        with database.transaction() as session:
            organization = ensure_owner(session).organization_id
        with database.read() as session:
            return [_line(job) for job in list_jobs(session, organization, after=None, limit=limit, metadata={}).rows]


def _line(job: Job) -> JobLine:
    return JobLine(job.id, job.status, job.model, job.created_at, job.quote_credits, job.charged_credits)


def _from_api(base_url: str, api_key: str | None, limit: int) -> Sequence[JobLine]:
    if api_key is None:
        raise AuthenticationError("Set TUNEWRIGHT_API_KEY, or give --api-key, for the service at --base-url.")
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/fine_tuning/jobs"
    try:
        response = httpx.get(url, params={"limit": limit}, headers={"Authorization": f"Bearer {api_key}"}, timeout=30)
    except httpx.TransportError as error:
        raise ServiceUnavailableError(f"No service answers at {base_url}: {error}") from None
    if response.status_code == UNAUTHORIZED:
        raise AuthenticationError(f"The service at {base_url} does not know this API key.")
    if not response.is_success:
        raise TunewrightError(f"The service at {base_url} answered {response.status_code}: {response.text[:300]}")
    return [_wire_line(job) for job in response.json()["data"]]


def _wire_line(job: dict[str, Any]) -> JobLine:
    created_at = datetime.fromtimestamp(job["created_at"], UTC)
    return JobLine(job["id"], job["status"], job["model"], created_at, job["quote"]["credits"], job["charged"])
