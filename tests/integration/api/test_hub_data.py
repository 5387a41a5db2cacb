"""Data sets of the hub as training files: noted at once, fetched by a worker, used as any file of the organization."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from core.accounts import limits
from core.accounts.models import Organization
from core.datasets import hub_files, inspecting
from core.datasets.models import FileStatus, StoredFile
from tests.hub_server import COMMIT, NEXT_COMMIT, Hub, Repository, parquet, running_hub, talk_to
from tests.integration.api.server import Service, Tenant

QUESTIONS = [f"Does lamp {number} glow?" for number in range(12)]
REFERENCE = "hf://acme/lamps"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one data set."""
    with running_hub() as hub:
        talk_to(hub, monkeypatch)
        content = {
            "data/train-00000-of-00002.parquet": parquet(*QUESTIONS[:7]),
            "data/train-00001-of-00002.parquet": parquet(*QUESTIONS[7:]),
            "data/test-00000-of-00001.parquet": parquet(*QUESTIONS[:2], "Is it dark?"),
        }
        hub.repositories["acme/lamps"] = Repository({"main": (COMMIT, content)})
        yield hub


def ask(tenant: Tenant, **fields: Any) -> httpx.Response:
    return tenant.http.post("/v1/plans", json={"model": "tiny", "training_file": REFERENCE, **fields})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def file_of(tenant: Tenant) -> dict[str, Any]:
    """The organization's only file."""
    (file,) = tenant.http.get("/v1/files").json()["data"]
    return dict(file)


def fetch(service: Service, file_id: str) -> None:
    """Act as the maintenance worker."""
    hub_files.fetch(service.runtime, file_id)
    inspecting.ensure_inspected(service.runtime, file_id)


def test_a_data_set_is_fetched_once_and_becomes_a_file(service: Service, rich: Tenant, hub: Hub) -> None:
    first = ask(rich)
    assert (first.status_code, error_of(first)["code"], error_of(first)["param"]) == (
        409,
        "file_being_fetched",
        "training_file",
    )
    assert first.headers["retry-after"] == "5"
    assert "x-should-retry" not in first.headers  # the client waits, and asks again by itself
    assert hub.fetched == []
    noted = file_of(rich)
    assert (noted["status"], noted["status_details"]) == ("uploaded", "Being fetched from the hub.")
    assert noted["bytes"] == len(parquet(*QUESTIONS[:7])) + len(parquet(*QUESTIONS[7:]))
    assert error_of(rich.http.get(f"/v1/files/{noted['id']}/content"))["code"] == "file_being_fetched"
    assert error_of(ask(rich))["code"] == "file_being_fetched"
    fetch(service, noted["id"])

    planned = ask(rich)
    assert planned.status_code == 200, planned.text
    assert planned.json()["training_file"] == noted["id"]
    assert planned.json()["data"]["examples"] == len(QUESTIONS)
    known = file_of(rich)
    assert known["status"] == "processed"
    assert known["source"] == {
        "repository": "acme/lamps",
        "revision": COMMIT,
        "config": "default",
        "split": "train",
        "reference": f"hf://acme/lamps?config=default&split=train&revision={COMMIT}",
    }
    inspection = rich.http.get(f"/v1/files/{known['id']}/inspection").json()
    assert (inspection["format"]["shape"], inspection["container"]) == ("question_answer", "parquet")
    assert len(hub.fetched) == 2

    body = {"model": "tiny", "training_file": REFERENCE, "plan": planned.json()["id"]}
    job = rich.http.post("/v1/fine_tuning/jobs", json=body).json()
    assert job["training_file"] == known["id"]
    pinned = {"model": "tiny", "training_file": known["source"]["reference"]}
    assert rich.http.post("/v1/plans", json=pinned).json()["training_file"] == known["id"]


def test_a_branch_that_moved_on_is_another_file(service: Service, rich: Tenant, hub: Hub) -> None:
    ask(rich)
    first = file_of(rich)["id"]
    fetch(service, first)
    repository = hub.repositories["acme/lamps"]
    repository.revisions = {
        "v1": repository.revisions["main"],
        "main": (NEXT_COMMIT, {"train.parquet": parquet("a", "b")}),
    }
    assert error_of(ask(rich))["code"] == "file_being_fetched"
    assert ask(rich, training_file=f"{REFERENCE}@v1").json()["training_file"] == first


def test_validation_data_comes_from_the_hub_too_and_its_overlap_is_told(
    service: Service, rich: Tenant, hub: Hub
) -> None:
    test_split = f"{REFERENCE}?split=test"
    ask(rich)
    fetch(service, file_of(rich)["id"])
    assert error_of(ask(rich, validation_file=test_split))["param"] == "validation_file"
    held_out, training = (file["id"] for file in rich.http.get("/v1/files").json()["data"])
    fetch(service, held_out)
    plan = ask(rich, validation_file=test_split).json()
    assert plan["data"]["validation_examples"] == 3
    assert any("2 of 3 validation examples are also in the training file" in reason for reason in plan["reasons"])
    query = {"model": "tiny", "validation_file": held_out, "max_length": 16}
    found = rich.http.get(f"/v1/files/{training}/inspection", params=query).json()
    assert found["overlap"] == {"count": 2, "rows": [1, 2]}
    assert (found["tokens"]["max_length"], found["tokens"]["truncated_rows"]) == (16, len(QUESTIONS))


def test_both_files_of_a_run_are_of_one_shape(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    validation = rich.upload([{"prompt": "Does it glow?", "completion": "No."}] * 3)
    answer = ask(rich, training_file=rich.upload(rows), validation_file=validation)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "validation_file")
    assert "'prompt_completion', those of the training file of 'messages'" in error_of(answer)["message"]


def test_the_column_that_answers_are_compared_with_is_in_both_files(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    labelled = [{**row, "label": number} for number, row in enumerate(rows)]
    wanted = {"extract": "last_number", "column": "label"}
    training = rich.upload(labelled)
    assert ask(rich, training_file=training, exact_match=wanted).status_code == 200
    without = error_of(ask(rich, training_file=rich.upload(rows), exact_match=wanted))
    assert (without["param"], "'messages'" in without["message"]) == ("exact_match.column", True)
    answer = ask(rich, training_file=training, validation_file=rich.upload(rows), exact_match=wanted)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "label")
    texts = rich.upload([{"text": "The lamp glows."}] * 3)
    assert error_of(ask(rich, training_file=texts, exact_match={"extract": "text"}))["param"] == "exact_match"


def test_files_of_the_hub_belong_to_one_organization(
    service: Service, rich: Tenant, stranger: Tenant, hub: Hub
) -> None:
    ask(rich)
    mine = file_of(rich)["id"]
    fetch(service, mine)
    assert stranger.http.get(f"/v1/files/{mine}").status_code == 404
    assert error_of(ask(stranger))["code"] == "file_being_fetched"
    assert file_of(stranger)["id"] != mine


@pytest.mark.parametrize(
    ("changes", "status", "code", "says"),
    [
        ({"upload_bytes": 1000}, 413, "file_too_large", "limit upload_bytes of 1,000"),
        ({"storage_bytes": 1000}, 429, "storage_bytes_limit", "limit storage_bytes is 1,000"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_fetched(
    service: Service, rich: Tenant, hub: Hub, changes: dict[str, int | None], status: int, code: str, says: str
) -> None:
    with service.runtime.database.transaction() as session:
        assert isinstance(limits.set_limits(session, rich.organization_id, changes), Organization)
    answer = ask(rich)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert says in error_of(answer)["message"]
    assert rich.http.get("/v1/files").json()["data"] == []
    assert hub.fetched == []


def test_a_hub_that_goes_away_while_it_is_fetched_is_waited_for(service: Service, rich: Tenant, hub: Hub) -> None:
    ask(rich)
    file_id = file_of(rich)["id"]
    hub.is_broken = True
    fetch(service, file_id)
    with service.runtime.database.read() as session:
        assert session.get_one(StoredFile, file_id).status is FileStatus.FETCHING
    assert error_of(ask(rich))["code"] == "hub_unreachable"
    hub.is_broken = False
    fetch(service, file_id)
    assert ask(rich).status_code == 200


def test_a_file_that_is_deleted_while_it_is_fetched_leaves_nothing(
    service: Service, rich: Tenant, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(rich)
    file_id = file_of(rich)["id"]
    download = hub_files.hub.download

    def delete_meanwhile(*arguments: Any) -> Any:
        rich.http.delete(f"/v1/files/{file_id}").raise_for_status()
        return download(*arguments)

    monkeypatch.setattr("core.datasets.hub.download", delete_meanwhile)
    fetch(service, file_id)
    assert not [path for path in service.artifacts if path.name == file_id]


def test_a_person_names_a_data_set_on_the_page_of_a_new_fine_tune(
    service: Service, browser: httpx.Client, rich: Tenant, hub: Hub
) -> None:
    shown = browser.get("/new", params={"model": "tiny"}).text
    assert 'action="/new/hub?model=tiny"' in shown
    token = re.findall(r'name="csrf_token" value="([^"]+)"', shown)[0]
    form = {"csrf_token": token, "name": "acme/lamps", "split": "train", "config": ""}
    answer = browser.post("/new/hub?model=tiny", data=form)
    file_id = file_of(rich)["id"]
    assert (answer.status_code, answer.headers["location"]) == (303, f"/new?model=tiny&file={file_id}")
    assert "A worker fetches this data set from the hub" in browser.get(answer.headers["location"]).text
    fetch(service, file_id)
    assert "acme--lamps-default-train" in browser.get(answer.headers["location"]).text
    refused = browser.post("/new/hub?model=tiny", data={**form, "split": "dev"})
    assert refused.headers["location"] == "/new?model=tiny"
    assert "unknown_split" in browser.get("/new?model=tiny").text
    assert browser.post("/new/hub", data={**form, "csrf_token": "x"}).status_code == 403


def test_what_is_no_reference_is_refused(rich: Tenant) -> None:
    answer = ask(rich, training_file="hf://acme")
    assert answer.status_code in (404, 503)  # a name without owner may exist
    answer = ask(rich, training_file="hf://acme/lamps?spilt=train")
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_hub_reference")
