"""Whose token the hub is asked with: an organization's own, the operator's where a setting says so, else none."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import structlog

from core.accounts import hub_tokens
from core.accounts.models import HubToken
from core.datasets import hub_files, inspecting
from tests.hub_server import COMMIT, Hub, Repository, parquet, running_hub, talk_to
from tests.integration.api.server import Service, Tenant

OPERATORS = "hf_" + "operator" * 5
ADAS = "hf_" + "adaLovelace" * 3 + "x7Qk"
STRANGERS = "hf_" + "stranger" * 5
PRIVATE_SET, PRIVATE_MODEL, GATED_MODEL = "hf://acme/private-set", "acme/private-model", "acme/gated-model"


@pytest.fixture
def hub(models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that knows three accounts; the operator's token is in this machine's environment, and opens everything."""
    with running_hub() as served:
        talk_to(served, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", OPERATORS)
        served.accounts = {OPERATORS: "operator", ADAS: "ada", STRANGERS: "mallory"}
        readers = frozenset({OPERATORS, ADAS})
        model = {path.name: path.read_bytes() for path in (models_dir / "tiny").iterdir()}
        rows = {"train.parquet": parquet(*(f"Does lamp {n} glow?" for n in range(12)))}
        served.repositories = {
            "acme/private-set": Repository({"main": (COMMIT, rows)}, private=True, readers=readers),
            "acme/private-model": Repository({"main": (COMMIT, model)}, private=True, readers=readers),
            "acme/gated-model": Repository({"main": (COMMIT, model)}, gated=True, readers=readers),
        }
        yield served


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Every line of the log."""
    lines: list[Any] = []

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        lines.append(dict(event))
        return event

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[keep, *before])
    yield lines
    structlog.configure(processors=before)


def give(tenant: Tenant, token: str) -> httpx.Response:
    return tenant.http.put("/v1/hub_token", json={"token": token})


def plan(tenant: Tenant, model: str = "tiny", training_file: str | None = None) -> httpx.Response:
    rows = [{"prompt": f"{n}?", "completion": "Yes."} for n in range(12)]
    body = {"model": model, "training_file": training_file or tenant.upload(rows)}
    return tenant.http.post("/v1/plans", json=body)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert "your own hub token" in error["message"] or "another token" in error["message"]
    return answer.status_code, error["code"]


def test_what_a_token_opens_is_open_to_its_organization_alone(
    service: Service, tenant: Tenant, stranger: Tenant, hub: Hub, logged: list[Any]
) -> None:
    texts = []
    for one in (tenant, stranger):
        assert refusal(plan(one, training_file=PRIVATE_SET)) == (404, "dataset_not_found")
        assert refusal(plan(one, PRIVATE_MODEL)) == (404, "model_not_found")
        assert refusal(plan(one, GATED_MODEL)) == (400, "model_gated")
    assert hub.tokens == {None}, "nobody asks with the token of the machine"

    kept = give(tenant, f" {ADAS}\n")
    assert kept.json() | {"set_at": 0} == {"object": "hub_token", "hint": "x7Qk", "hub_account": "ada", "set_at": 0}
    assert give(stranger, STRANGERS).json()["hub_account"] == "mallory"
    for model in (PRIVATE_MODEL, GATED_MODEL):
        answer = plan(tenant, model)
        assert answer.status_code == 200, answer.text
    fetching = plan(tenant, training_file=PRIVATE_SET)
    assert fetching.json()["error"]["code"] == "file_being_fetched"
    file_id = tenant.http.get("/v1/files").json()["data"][0]["id"]
    hub_files.fetch(service.runtime, file_id)
    inspecting.ensure_inspected(service.runtime, file_id)
    assert plan(tenant, training_file=PRIVATE_SET).json()["training_file"] == file_id
    question = tenant.http.get(f"/v1/files/{file_id}/inspection", params={"model": PRIVATE_MODEL})
    assert question.json()["tokens"]["examples"] == 12, "also for who only looks"

    # All of it is in the caches of these processes now, and nothing of it is the stranger's.
    theirs = stranger.upload([{"prompt": "a", "completion": "b"}] * 12)
    for answer, expected in (
        (plan(stranger, training_file=PRIVATE_SET), (404, "dataset_not_found")),
        (plan(stranger, PRIVATE_MODEL), (404, "model_not_found")),
        (plan(stranger, GATED_MODEL), (400, "model_gated")),
        (
            stranger.http.get(f"/v1/files/{theirs}/inspection", params={"model": PRIVATE_MODEL}),
            (404, "model_not_found"),
        ),
    ):
        assert refusal(answer) == expected
        texts.append(answer.text)
    assert OPERATORS not in hub.tokens
    assert not any(token in text for token in (ADAS, OPERATORS, STRANGERS) for text in [*texts, str(logged)])


def test_a_token_is_kept_encrypted_shown_to_nobody_and_removed(service: Service, tenant: Tenant, hub: Hub) -> None:
    missing = tenant.http.get("/v1/hub_token")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "hub_token_not_found")
    assert ADAS not in give(tenant, ADAS).text + tenant.http.get("/v1/hub_token").text
    with service.runtime.database.read() as session:
        kept = session.get_one(HubToken, tenant.organization_id)
        assert ADAS not in kept.sealed
        assert hub_tokens.access_of(session, service.settings, tenant.organization_id).credential == ADAS
        access = hub_tokens.access_of(session, service.settings, tenant.organization_id)
        assert ADAS not in f"{access!r} {access}"
    assert (service.settings.data_dir / "secret.key").stat().st_mode & 0o777 == 0o600
    assert tenant.http.delete("/v1/hub_token").json() == {"object": "hub_token", "deleted": True}
    assert tenant.http.delete("/v1/hub_token").status_code == 404
    assert refusal(plan(tenant, PRIVATE_MODEL)) == (404, "model_not_found")


@pytest.mark.parametrize("token", ["short", "has a space in it", "hf_ümläut-and-so-on", ""])
def test_what_can_be_no_token_is_refused(tenant: Tenant, hub: Hub, token: str) -> None:
    answer = give(tenant, token)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "token")
    assert not token or token not in answer.text
    assert hub.tokens == set()


def test_a_token_that_the_hub_refuses_is_not_kept_and_one_that_it_refuses_later_is_named(
    tenant: Tenant, hub: Hub
) -> None:
    answer = give(tenant, "hf_" + "unknown" * 4)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "hub_token_refused")
    assert tenant.http.get("/v1/hub_token").status_code == 404
    give(tenant, ADAS)
    del hub.accounts[ADAS]  # revoked on the hub
    for answer in (plan(tenant, PRIVATE_MODEL), plan(tenant, training_file=PRIVATE_SET)):
        assert answer.json()["error"]["code"] == "hub_token_refused"
        assert "…x7Qk" in answer.json()["error"]["message"]


def test_a_hub_that_is_away_hinders_nobody_from_keeping_a_token(tenant: Tenant, hub: Hub) -> None:
    hub.is_broken = True
    assert give(tenant, ADAS).json()["hub_account"] is None


def test_the_operators_token_serves_administrators_where_a_setting_says_so(
    service: Service, tenant: Tenant, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    administrators, _, _ = service.enrol(is_admin=True)

    def credential(organization_id: str) -> str | bool:
        with service.runtime.database.read() as session:
            return hub_tokens.access_of(session, service.settings, organization_id).credential

    assert (credential(administrators), credential(tenant.organization_id)) == (False, False)
    monkeypatch.setattr(service.settings, "hub_token_for_administrators", True)
    assert (credential(administrators), credential(tenant.organization_id)) == (OPERATORS, False)
    hub_tokens.set_token(service.runtime, administrators, hub_tokens.SecretStr(ADAS))
    assert credential(administrators) == ADAS


def test_a_person_sets_and_removes_the_token_on_the_settings_page(
    service: Service, browser: httpx.Client, hub: Hub
) -> None:
    csrf = re.findall(r'name="csrf_token" value="([^"]+)"', browser.get("/settings").text)[0]
    answer = browser.post("/settings/hub-token", data={"csrf_token": csrf, "token": ADAS})
    assert (answer.status_code, answer.headers["location"]) == (303, "/settings#hub-token")
    shown = browser.get("/settings").text
    assert "…x7Qk</code> of ada" in shown
    assert ADAS not in shown + str(answer.headers)
    assert "jobs that wait for such a model fail" in browser.get("/settings/hub-token/remove").text
    browser.post("/settings/hub-token/remove", data={"csrf_token": csrf})
    assert "x7Qk" not in browser.get("/settings").text
    refused = browser.post("/settings/hub-token", data={"csrf_token": csrf, "token": "short"})
    assert refused.status_code in (303, 400)
    assert "short" not in refused.text
