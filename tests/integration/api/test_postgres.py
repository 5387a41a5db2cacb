"""The same application on PostgreSQL."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.settings import Settings
from tests.integration.api.server import Service, running_application

pytestmark = pytest.mark.postgres


def test_service_works_on_postgresql(
    tmp_path: Path, models_dir: Path, valkey_url: str, postgres_url: str, rows: list[dict[str, Any]]
) -> None:
    settings = Settings(data_dir=tmp_path, models_dir=models_dir, redis_url=valkey_url, database_url=postgres_url)
    with running_application(settings) as service, service.tenant() as tenant:
        tenant.grant(10_000)
        jobs = tenant.client.fine_tuning.jobs
        file_id = tenant.upload(rows)
        tagged = jobs.create(model="tiny", training_file=file_id, metadata={"team": "support"})
        plain = jobs.create(model="tiny", training_file=file_id)
        held = service.claim(tagged.id)
        service.write_metrics(held, 1)
        service.finish(held)

        assert [job.id for job in jobs.list(limit=1)] == [plain.id, tagged.id]
        assert [job.id for job in jobs.list(metadata={"team": "support"})] == [tagged.id]
        assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [plain.id]
        assert jobs.retrieve(tagged.id).status == "succeeded"
        assert len(list(jobs.list_events(tagged.id, limit=2))) >= 4
        with tenant.http.stream("GET", f"/v1/fine_tuning/jobs/{tagged.id}/events", params={"stream": "true"}) as stream:
            assert "data: [DONE]" in stream.read().decode()
        key = {"idempotency-key": "one"}
        body = {"model": "tiny", "training_file": file_id}
        twice = [tenant.http.post("/v1/fine_tuning/jobs", json=body, headers=key).json()["id"] for _ in range(2)]
        assert twice[0] == twice[1]
        for unstorable in ("/v1/files/file-%00", "/v1/fine_tuning/jobs?after=%00", "/v1/models/%00"):
            assert tenant.http.get(unstorable).status_code in (400, 404), unstorable
        assert tenant.http.post("/v1/api_keys", json={"name": "a\0b"}).status_code == 400
        assert tenant.http.get("/readyz").json()["database"] == "ok"
        read_only(service, "on")
        refused = tenant.http.get("/readyz")
        assert (refused.status_code, "it is read-only" in refused.text) == (503, True)
        assert tenant.http.get("/v1/files").status_code == 200, "reading goes on"
        written = tenant.http.post("/v1/api_keys", json={"name": "laptop"})
        assert (written.status_code, written.json()["error"]["code"]) == (503, "database_unavailable")
        read_only(service, "off")
        assert tenant.http.get("/readyz").status_code == 200


def read_only(service: Service, value: str) -> None:
    """Have the database refuse writes on all connections, as somebody does who works on it."""
    engine = service.runtime.database.engine
    with engine.connect() as connection:
        connection.execute(text("set transaction read write"))
        connection.execute(text(f'alter database "{engine.url.database}" set default_transaction_read_only = {value}'))
        connection.commit()
    engine.dispose()
