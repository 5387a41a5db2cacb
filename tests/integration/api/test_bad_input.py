"""What users get wrong: each a clear error in the envelope, nothing lost, nothing charged."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest

from core.fleet import service as fleet
from core.ledger import codes
from tests.integration.api.server import CPU, Service, Tenant, report_device

Rows = list[dict[str, Any]]


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode()


GOOD = '{"prompt": "Why?", "completion": "Because."}'


@pytest.fixture
def refuse(rich: Tenant, rows: Rows) -> Callable[..., dict[str, Any]]:
    """Ask for a job and a plan, expect both to be refused alike, and check that nothing was booked or left behind."""

    def ask(status: int, code: str, **body: Any) -> dict[str, Any]:
        body = {"model": "tiny", **body}
        body.setdefault("training_file", None) or body.update(training_file=rich.upload(rows))
        files = [file.id for file in rich.client.files.list()]
        answers = [rich.http.post(path, json=body) for path in ("/v1/fine_tuning/jobs", "/v1/plans")]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert [transaction.kind for transaction in rich.transactions] == ["grant"]
        assert list(rich.client.fine_tuning.jobs.list()) == []
        assert [file.id for file in rich.client.files.list()] == files
        error: dict[str, Any] = answers[0].json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    return ask


@pytest.mark.parametrize(
    "model", ["smollm9", "../tiny", "/etc", "..", "tiny/../../etc", "https://example.org/x", "a/b--c", "a/x.git"]
)
def test_unknown_model(refuse: Callable[..., dict[str, Any]], model: str) -> None:
    error = refuse(404, "model_not_found", model=model)
    assert error["param"] == "model"
    assert model in error["message"]


def test_model_too_large_for_every_device_names_what_would_fit(refuse: Callable[..., dict[str, Any]]) -> None:
    error = refuse(400, "plan_does_not_fit", model="huge")
    assert "GiB" in error["message"]


def test_model_with_pickle_weights_only(refuse: Callable[..., dict[str, Any]]) -> None:
    error = refuse(400, "unsafe_weights", model="pickled")
    assert "safetensors" in error["message"]


def test_unknown_file(refuse: Callable[..., dict[str, Any]], rich: Tenant) -> None:
    assert refuse(404, "file_not_found", training_file="file-unknown")["param"] == "training_file"
    known = rich.upload(lines(GOOD, GOOD))
    error = refuse(404, "file_not_found", training_file=known, validation_file="file-unknown")
    assert error["param"] == "validation_file"


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (lines(GOOD, GOOD).replace(b"Why", b"\xff\xfe\xfa"), "invalid_dataset", "UTF-8"),
        (b'[{"text": "one"}, {"text": }, {"text": "three"}]', "invalid_dataset", "Row 2"),
        (lines(GOOD, '{"prompt": "Why?", ', GOOD), "invalid_dataset", "2"),
        (lines(GOOD, '{"prompt": {"a": 1}, "completion": "Because."}'), "invalid_dataset", "Row 2"),
        (b"\n\n\n", "invalid_dataset", "only blanks"),
        (lines(GOOD), "too_few_examples", "1 example"),
        (
            lines(*['{"messages": [{"role": "user", "content": "Anyone?"}]}'] * 3),
            "no_trainable_tokens",
            "None of the",
        ),
        (lines(*['{"a": 1, "b": 2}'] * 3), "unknown_format", "'a'"),
    ],
    ids=["not UTF-8", "array row", "broken line", "wrong type", "blank", "one row", "nothing to train", "columns"],
)
def test_unusable_data(
    refuse: Callable[..., dict[str, Any]], rich: Tenant, content: bytes, code: str, says: str
) -> None:
    error = refuse(400, code, training_file=rich.upload(content))
    assert says in error["message"]
    assert error["param"] in ("training_file", "format")


def test_row_longer_than_the_context_is_counted_not_fatal(rich: Tenant) -> None:
    long = json.dumps({"prompt": "Why?", "completion": "Because it is so. " * 60})
    file_id = rich.upload(lines(GOOD, GOOD, long))

    plan = rich.http.post("/v1/plans", json={"model": "short", "training_file": file_id})

    assert plan.status_code == 200, plan.text
    assert plan.json()["max_length"] == 64
    assert plan.json()["data"]["truncated_examples"] == 1
    assert rich.client.fine_tuning.jobs.create(model="short", training_file=file_id).status == "queued"


def test_another_organizations_things_do_not_exist(
    service: Service, rich: Tenant, stranger: Tenant, rows: Rows
) -> None:
    stranger.grant(10_000)
    file_id = rich.upload(rows)
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=file_id).id
    plan_id = rich.http.post("/v1/plans", json={"model": "tiny", "training_file": file_id}).json()["id"]
    service.finish(service.claim(job_id))
    job = f"/v1/fine_tuning/jobs/{job_id}"

    for method, path in (
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("GET", f"/v1/files/{file_id}/inspection"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("GET", job),
        ("POST", f"{job}/cancel"),
        ("POST", f"{job}/pause"),
        ("POST", f"{job}/resume"),
        ("GET", f"{job}/events"),
        ("GET", f"{job}/checkpoints"),
        ("GET", f"{job}/artifacts"),
        ("GET", f"{job}/artifacts/adapter.zip"),
        ("GET", f"/v1/plans/{plan_id}"),
    ):
        answer = stranger.http.request(method, path)
        assert answer.status_code == 404, (method, path)
        assert answer.json()["error"]["code"] in ("file_not_found", "job_not_found", "plan_not_found")
    with pytest.raises(openai.NotFoundError):
        stranger.client.fine_tuning.jobs.create(model="tiny", training_file=file_id)
    answer = stranger.http.post(
        "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id, "plan": plan_id}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "plan_not_found")
    assert [transaction.kind for transaction in stranger.transactions] == ["grant"]
    assert rich.http.get(f"{job}/artifacts/adapter.zip").content == b"PK adapter"


def test_codes_that_do_not_work_say_why(service: Service, tenant: Tenant, rows: Rows) -> None:
    expired, spent = f"E-{tenant.organization_id}", f"S-{tenant.organization_id}"
    with service.runtime.database.transaction() as session:
        codes.create_code(session, expired, 100, expires_at=datetime(2026, 1, 1, tzinfo=UTC))
        codes.create_code(session, spent, 100)
        codes.redeem(session, tenant.organization_id, spent)
    file_id = tenant.upload(rows)

    for code, status, name in (
        ("NO-SUCH-CODE", 404, "code_unknown"),
        (expired, 400, "code_expired"),
        (spent, 409, "code_already_redeemed"),
    ):
        answer = tenant.http.post("/v1/credits/redemptions", json={"code": code})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, name)
    for code, status, name in (("NO-SUCH-CODE", 404, "code_unknown"), (expired, 400, "code_expired")):
        body = {"model": "tiny", "training_file": file_id, "credit_code": code}
        answer = tenant.http.post("/v1/fine_tuning/jobs", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, name)
    assert [transaction.kind for transaction in tenant.transactions] == ["grant"]
    assert list(tenant.client.fine_tuning.jobs.list()) == []


def test_no_credits_is_402_with_the_numbers(tenant: Tenant, rows: Rows) -> None:
    with pytest.raises(openai.APIStatusError, match="0 are available") as refused:
        tenant.client.fine_tuning.jobs.create(model="tiny", training_file=tenant.upload(rows))

    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_credits")
    assert tenant.transactions == []
    assert list(tenant.client.fine_tuning.jobs.list()) == []


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        (b'{"model": "tiny",', "invalid_json", None, "at character 17"),
        (b"[]", "invalid_request_error", None, "must be an object"),
        (b"", "invalid_request_error", None, "A JSON body is required"),
        (b"{}", "invalid_request_error", "model", "model is required. training_file is required."),
        (b'{"model": 5, "training_file": "f"}', "invalid_request_error", "model", "model must be text; got 5."),
        (
            b'{"model": "tiny", "training_file": "f", "credit_cod": "x"}',
            "unknown_field",
            "credit_cod",
            "Did you mean 'credit_code'?",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "hyperparameters": {"n_epoch": 3}}',
            "unknown_field",
            "hyperparameters.n_epoch",
            "Did you mean 'n_epochs'?",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "hyperparameters": {"n_epochs": 0}}',
            "invalid_request_error",
            "hyperparameters.n_epochs",
            "must be at least 1; got 0.",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "hyperparameters": {"n_epochs": "three"}}',
            "invalid_request_error",
            "hyperparameters.n_epochs",
            "must be a whole number; got 'three'.",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "priority": "fast"}',
            "invalid_request_error",
            "priority",
            "must be 'auto', 'quality' or 'economy'",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "suffix": "no spaces"}',
            "invalid_request_error",
            "suffix",
            "got 'no spaces'.",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "metadata": {"k": 1}}',
            "invalid_request_error",
            "metadata.k",
            "must be text; got 1.",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "method": {"type": "dpo", "dpo": {"hyperparameters": {}}}}',
            "unsupported_method",
            "method.type",
            "'dpo' is not supported",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}',
            "unsupported_integration",
            "integrations",
            "not supported",
        ),
        (
            b'{"model": "tiny", "training_file": "f", "adapter": {"target_modules": "all"}}',
            "invalid_request_error",
            "adapter.target_modules",
            "must be a list; got 'all'.",
        ),
    ],
)
def test_malformed_body_is_explained(tenant: Tenant, body: bytes, code: str, param: str | None, says: str) -> None:
    answer = tenant.http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert says in error["message"]


def test_contradicting_requests_are_explained(rich: Tenant, rows: Rows) -> None:
    body = {"model": "tiny", "training_file": rich.upload(rows), "adapter": {"method": "full", "r": 8}}
    answer = rich.http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400
    assert "trains no adapter" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_wrong_content_type(tenant: Tenant, content_type: str) -> None:
    answer = tenant.http.post("/v1/fine_tuning/jobs", content=b'{"a": 1}', headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("declares_its_length", [True, False], ids=["declared", "chunked"])
def test_too_large_body(service: Service, tenant: Tenant, declares_its_length: bool) -> None:
    body = b'{"model": "' + b"x" * service.settings.max_request_bytes + b'"}'
    answer = tenant.http.post(
        "/v1/fine_tuning/jobs",
        content=body if declares_its_length else iter([body]),
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_unknown_route_and_method(tenant: Tenant) -> None:
    unknown = tenant.http.get("/v1/fine_tuning/job")
    method = tenant.http.put("/v1/fine_tuning/jobs")

    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_route")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "GET, POST"
    assert "it takes GET, POST" in method.json()["error"]["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=many", "limit=101"])
def test_bad_query_is_explained(tenant: Tenant, query: str) -> None:
    answer = tenant.http.get(f"/v1/fine_tuning/jobs?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("name", ["a/b--c", "a/x.git", "b--c", "a/b@..\\", "é/é", "a/b?revision=x y"])
def test_what_the_hubs_library_refuses_is_refused_in_our_words(rich: Tenant, name: str) -> None:
    answer = rich.http.post("/v1/plans", json={"model": "tiny", "training_file": f"hf://{name}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_hub_reference"), answer.text


@pytest.mark.parametrize("number", ["\u00b2", "\u0663", "1" * 400, "-1", "1e3", "0x1"])
def test_a_header_that_is_no_number_is_none(tenant: Tenant, number: str) -> None:
    headers = {"x-stainless-retry-count": number.encode("utf-8"), "content-type": "application/json"}
    answer = tenant.http.post("/v1/api_keys", content=b'{"name": "k"}', headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("sort", ["steps", "-steps", "created_at", "loss", "cost", "model", "status"])
@pytest.mark.parametrize("place", ["9" * 26, "-" + "9" * 26, "1e400", "nan", "inf", "2026-01-01", "\u00b2", "", "%00"])
def test_a_place_that_no_page_gave_is_no_500(browser: httpx.Client, sort: str, place: str) -> None:
    answer = browser.get(f"/jobs?sort={sort}&after={place}~x")
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("escape", ["\\u0000", "\\ud800", "\\udfff"])
def test_text_that_no_database_keeps_is_refused(tenant: Tenant, escape: str) -> None:
    for path, body in (
        ("/v1/api_keys", f'{{"name": "a{escape}"}}'),
        ("/v1/plans", f'{{"model": "tiny{escape}", "training_file": "x"}}'),
        ("/v1/plans", f'{{"model": "tiny", "training_file": "x", "metadata": {{"a": "{escape}"}}}}'),
        ("/v1/plans", f'{{"model": "tiny", "training_file": "x", "metadata": {{"{escape}": "a"}}}}'),
        ("/v1/plans", f'{{"model": "tiny", "training_file": "x", "adapter": {{"target_modules": ["{escape}"]}}}}'),
        ("/v1/credits/redemptions", f'{{"code": "{escape}"}}'),
    ):
        answer = tenant.http.post(path, content=body.encode(), headers={"content-type": "application/json"})
        assert answer.status_code == 400, (body, answer.text)
        assert "cannot be kept" in answer.json()["error"]["message"]


def test_no_worker_is_503(service: Service, rich: Tenant, rows: Rows) -> None:

    service.runtime.database.run(lambda session: fleet.stop(session, "worker_test"))
    try:
        body = {"model": "tiny", "training_file": rich.upload(rows)}
        answer = rich.http.post("/v1/fine_tuning/jobs", json=body)
    finally:
        report_device(service, CPU)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_workers")
    assert answer.headers["retry-after"] == "2"
    assert [transaction.kind for transaction in rich.transactions] == ["grant"]


def test_only_sick_devices_is_503_that_names_them(service: Service, rich: Tenant, rows: Rows) -> None:
    report_device(service, replace(CPU, kind="cuda", name="NVIDIA A10", problem="the driver says: GPU is lost"))
    try:
        answer = rich.http.post("/v1/plans", json={"model": "tiny", "training_file": rich.upload(rows)})
    finally:
        report_device(service, CPU)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_workers")
    assert "NVIDIA A10 (cuda:0) of test-host: the driver says: GPU is lost." in answer.json()["error"]["message"]
