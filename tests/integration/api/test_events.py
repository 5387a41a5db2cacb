"""Following a job: server-sent events that resume exactly."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import Stream
from openai.types.fine_tuning import FineTuningJobEvent

from core.settings import Settings
from tests.integration.api.server import Service, Tenant, running_application


@pytest.fixture
def job_id(rich: Tenant, rows: list[dict[str, Any]]) -> str:
    return rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id


def frames(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, as (id, data); comments are skipped."""
    event_id = None
    for line in response.iter_lines():
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield {"id": event_id, "data": data if data == "[DONE]" else json.loads(data)}


def stored_events(tenant: Tenant, job_id: str) -> list[str]:
    return [event.id for event in tenant.client.fine_tuning.jobs.list_events(job_id)][::-1]


def test_stream_tells_everything_as_it_happens_and_ends(service: Service, rich: Tenant, job_id: str) -> None:
    url = f"/v1/fine_tuning/jobs/{job_id}/events"
    with rich.http.stream("GET", url, params={"stream": "true"}, timeout=10) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        live = frames(response)
        seen = [next(live)["id"] for _ in stored_events(rich, job_id)]
        held = service.claim(job_id)
        seen.append(next(live)["id"])
        service.write_metrics(held, 1)
        metrics = next(live)
        seen.append(metrics["id"])
        service.finish(held)
        rest = list(live)

    assert metrics["data"]["data"]["step"] == 1
    assert rest.pop()["data"] == "[DONE]"
    assert seen + [frame["id"] for frame in rest] == stored_events(rich, job_id)


def test_broken_stream_resumes_without_gap_or_repeat(service: Service, rich: Tenant, job_id: str) -> None:
    url = f"/v1/fine_tuning/jobs/{job_id}/events"
    with rich.http.stream("GET", url, params={"stream": "true"}) as response:
        live = frames(response)
        seen = [next(live)["id"], next(live)["id"]]
    service.finish(service.claim(job_id))

    with rich.http.stream("GET", url, params={"stream": "true"}, headers={"last-event-id": seen[-1]}) as response:
        rest = [frame["id"] for frame in frames(response)]

    assert seen + rest[:-1] == stored_events(rich, job_id)


def test_stream_is_read_by_the_official_client(service: Service, rich: Tenant, job_id: str) -> None:
    service.finish(service.claim(job_id))

    stream = rich.client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=Stream[FineTuningJobEvent],
        options={"params": {"stream": "true"}},
    )

    assert [event.id for event in stream] == stored_events(rich, job_id)


def test_slow_table_and_fast_wakes_lose_nothing(service: Service, rich: Tenant, job_id: str) -> None:
    held = service.claim(job_id)
    ready = threading.Event()

    def work() -> None:
        ready.wait(10)
        for step in range(1, 41):
            service.write_metrics(held, step)
        service.finish(held)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with rich.http.stream(
            "GET", f"/v1/fine_tuning/jobs/{job_id}/events", params={"stream": "true"}, timeout=10
        ) as response:
            ready.set()
            ids = [frame["id"] for frame in frames(response)][:-1]
    finally:
        ready.set()
        worker.join()

    assert len(ids) == len(set(ids))
    assert ids == stored_events(rich, job_id)


def test_foreign_event_is_refused_before_the_stream_begins(rich: Tenant, stranger: Tenant, job_id: str) -> None:
    url = f"/v1/fine_tuning/jobs/{job_id}/events"

    unknown = rich.http.get(url, params={"stream": "true"}, headers={"last-event-id": "ftevent-unknown"})
    foreign = stranger.http.get(url, params={"stream": "true"})

    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "job_not_found")


def test_stream_goes_on_without_a_broker(tmp_path: Path, models_dir: Path, rows: list[dict[str, Any]]) -> None:
    settings = Settings(data_dir=tmp_path, models_dir=models_dir, redis_url="redis://127.0.0.1:1/0")
    with running_application(settings) as service, service.tenant() as tenant:
        tenant.grant(10_000)
        job_id = tenant.client.fine_tuning.jobs.create(model="tiny", training_file=tenant.upload(rows)).id
        url = f"/v1/fine_tuning/jobs/{job_id}/events"
        with tenant.http.stream("GET", url, params={"stream": "true"}, timeout=20) as response:
            live = frames(response)
            seen = [next(live)["id"] for _ in stored_events(tenant, job_id)]
            service.finish(service.claim(job_id))
            seen += [frame["id"] for frame in live][:-1]

        assert seen == stored_events(tenant, job_id)
