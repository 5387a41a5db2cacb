"""A base model whose chat template never ends costs one limited child its time, and nobody else theirs."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.integration.api.server import Service, Tenant
from tests.tiny_models import derive_model
from tests.waiting import wait_for

CPU_SECONDS = 10  # that a template may take


def test_a_template_that_never_ends_is_the_models_error_and_keeps_nobody_waiting(
    service: Service, models_dir: Path, tenant: Tenant, stranger: Tenant, rows: list[dict[str, Any]]
) -> None:
    directory = derive_model(models_dir / "tiny", models_dir / "endless")
    (directory / "chat_template.jinja").write_text("{{ 3 ** (2 ** 30) }}")
    body = {"model": "endless", "training_file": tenant.upload(rows)}
    children = service.runtime.children
    with ThreadPoolExecutor(1) as threads:
        planned = threads.submit(lambda: tenant.http.post("/v1/plans", json=body, timeout=300))
        wait_for(lambda: children._busy or planned.done(), what="the child that reads the file")
        assert stranger.http.get("/v1/account").status_code == 200
        assert tenant.http.get("/v1/files").status_code == 200
        assert not planned.done(), "the others were answered meanwhile"
        answer = planned.result()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "chat_template_too_demanding", "model")
    assert "CPU time" in error["message"]

    started = time.monotonic()
    again = [tenant.http.post("/v1/plans", json={**body, "max_length": length}) for length in (64, 128)]
    assert [one.json()["error"] for one in again] == [error] * 2
    assert time.monotonic() - started < CPU_SECONDS, "the template was not run again"
