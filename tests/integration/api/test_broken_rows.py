"""A file with broken rows can be started without them, where its owner says so; and never by itself."""

import httpx
import pytest

from tests.integration.api.server import Tenant

GOOD = b'{"prompt": "Why %d?", "completion": "Because."}\n'
BROKEN = b"".join(GOOD % number for number in range(12)) + b'{"prompt": "Why?", \n' + GOOD % 99
TABLE = b"Frage,Antwort\n" + b"".join(b"Warum %d?,Darum.\n" % number for number in range(12))


def test_broken_rows_are_shown_and_left_out_only_where_that_is_said(rich: Tenant) -> None:
    file_id = rich.upload(BROKEN)
    found = rich.http.get(f"/v1/files/{file_id}/inspection").json()
    assert (found["status"], found["error_count"], found["can_skip_broken_rows"]) == ("error", 1, True)
    assert found["errors"][0]["row"] == 13
    assert found["errors"][0]["excerpt"] == '{"prompt": "Why?",'
    wanted = {"model": "tiny", "training_file": file_id}

    refused = rich.http.post("/v1/plans", json=wanted)
    assert refused.status_code == 400
    assert "skip_broken_rows" in refused.json()["error"]["message"]

    skipping = {**wanted, "format": {"skip_broken_rows": True}}
    plan = rich.http.post("/v1/plans", json=skipping).json()
    assert plan["data"]["examples"] == 13
    assert [(notice["code"], notice["rows"], notice["first_row"]) for notice in plan["notices"]] == [
        ("skipped_rows", 1, 13)
    ]
    job = rich.http.post("/v1/fine_tuning/jobs", json=skipping).json()
    assert job["status"] in ("validating_files", "queued")
    events = rich.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert any(event["level"] == "warn" and "Row 13: left out" in event["message"] for event in events)


def test_a_file_that_cannot_be_read_to_its_end_is_never_started(rich: Tenant) -> None:
    file_id = rich.upload(b'[{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}] oops')
    asked = {"model": "tiny", "training_file": file_id, "format": {"skip_broken_rows": True}}
    refused = rich.http.post("/v1/plans", json=asked)
    assert refused.status_code == 400
    assert "the array ends after row 2" in refused.json()["error"]["message"]


def test_any_table_can_be_mapped_and_shows_what_its_columns_hold(rich: Tenant) -> None:
    file_id = rich.upload(TABLE)
    found = rich.http.get(f"/v1/files/{file_id}/inspection").json()
    assert found["format"] is None
    assert found["columns"] == ["Frage", "Antwort"]
    assert found["samples"] == {"Frage": ["Warum 0?", "Warum 1?", "Warum 2?"], "Antwort": ["Darum."]}
    assert [notice["code"] for notice in found["notices"]] == ["first_row_names_columns"]
    for columns, examples in ((("Frage", "Antwort"), 12), (("column_1", "column_2"), 13)):
        mapping = {"shape": "prompt_completion", "columns": dict(zip(("prompt", "completion"), columns, strict=True))}
        plan = rich.http.post("/v1/plans", json={"model": "tiny", "training_file": file_id, "format": mapping})
        assert plan.json()["data"]["examples"] == examples, plan.text


@pytest.mark.parametrize("format_", [{"columns": {"prompt": "a"}}, {"shape": "poem"}])
def test_a_format_that_says_nothing_is_refused(rich: Tenant, format_: dict[str, object]) -> None:
    refused = rich.http.post(
        "/v1/plans", json={"model": "tiny", "training_file": rich.upload(TABLE), "format": format_}
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "format.shape")


def test_the_dashboard_offers_to_skip_broken_rows_and_names_samples(browser: httpx.Client, rich: Tenant) -> None:
    address = f"/new?model=tiny&file={rich.upload(BROKEN)}"
    shown = browser.get(address).text
    assert "Skip 1 broken row" in shown
    assert "Row 13: line 13 is not valid JSON" in shown
    assert "Start for at most" not in shown
    skipped = browser.get(f"{address}&skip_broken_rows=true").text
    assert "Row 13: left out, as asked" in skipped
    assert "Start for at most" in skipped
    assert 'name="skip_broken_rows" value="true"' in skipped

    unmapped = browser.get(f"/new?model=tiny&file={rich.upload(TABLE)}").text
    assert "Warum 0? · Warum 1? · Warum 2?" in unmapped
    assert "If the first row is data" in unmapped
