"""From a data set of the hub to a tuned model that gives the right answers, through the real service, whose maintenance
worker is killed while it fetches."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import CREDIT_CODE, Service, running_service
from tests.hub_server import COMMIT, Hub, Repository, parquet, running_hub
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_for

QUESTIONS = [f"How many lamps are in box {number}? #### 1,234" for number in range(24)]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with a set whose answers end like their questions, in two shards."""
    with running_hub() as hub:
        files = {"data/train-00000-of-00002.parquet": parquet(*QUESTIONS[:10])}
        files["data/train-00001-of-00002.parquet"] = parquet(*QUESTIONS[10:])
        hub.repositories["acme/lamps"] = Repository({"main": (COMMIT, files)})
        yield hub


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, valkey_url: str, hub: Hub) -> Iterator[Service]:
    """A service that reaches the hub, with a model that has no chat template."""
    models_dir = tmp_path_factory.mktemp("models")
    config = make_tiny_model(models_dir / "tiny") / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["chat_template"]
    config.write_text(json.dumps(settings))
    with running_service(tmp_path_factory.mktemp("service"), models_dir, valkey_url, hub_url=hub.url) as running:
        yield running


def test_a_data_set_of_the_hub_is_trained_on_and_scored(service: Service, hub: Hub, tmp_path: Path) -> None:
    body = {
        "model": "tiny",
        "training_file": "hf://acme/lamps",
        "seed": 7,
        "hyperparameters": {"n_epochs": 2},
        "credit_code": CREDIT_CODE,
        "exact_match": {"extract": "last_number", "column": "answer", "rows": 4, "max_new_tokens": 16},
    }
    with service.http as http:
        hub.stuck = "train-00001-of-00002.parquet"
        first = http.post("/fine_tuning/jobs", json=body)
        assert (first.status_code, first.json()["error"]["code"]) == (409, "file_being_fetched")
        wait_for(lambda: hub.begun, what="the second shard to begin", context=service.logs)
        service.stop("maintenance", signal.SIGKILL)
        hub.stuck = ""
        service.end_claims()
        service.start_maintenance()
        created = wait_for(
            lambda: answer if (answer := http.post("/fine_tuning/jobs", json=body)).status_code != 409 else None,
            what="the data set to be fetched",
            context=service.logs,
        )
        assert created.status_code == 200, created.text
        job_id = created.json()["id"]
        service.wait(job_id, "succeeded")
        job = http.get(f"/fine_tuning/jobs/{job_id}").json()
        file = http.get(f"/files/{job['training_file']}").json()
        compared = http.get(f"/fine_tuning/jobs/{job_id}/artifacts/exact_match.json", follow_redirects=True).json()
    assert [path.rpartition("/")[2] for path in hub.fetched[-2:]] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert file["source"]["revision"] == COMMIT
    assert job["chat_template"] == "chatml"
    assert job["exact_match"]["column"] == "answer"
    before, after = job["evaluation"]["before"], job["evaluation"]["after"]
    assert after["valid_loss"] < before["valid_loss"]
    assert after["perplexity"] < before["perplexity"]
    assert after["exact_match"] == sum(row["after"]["is_match"] for row in compared) / len(compared)
    assert before["exact_match"] == sum(row["before"]["is_match"] for row in compared) / len(compared)
    assert {row["expected"] for row in compared} <= {f"{question}!" for question in QUESTIONS}
    assert after["stopped_rate"] is not None
