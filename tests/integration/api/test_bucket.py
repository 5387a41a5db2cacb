"""The same application on a bucket: downloads are links to where browsers reach it, else they pass through the API."""

from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from tests.integration.api.server import running_application


@pytest.mark.parametrize("is_public", [True, False])
def test_downloads_are_links_where_browsers_reach_the_bucket(
    tmp_path: Path, models_dir: Path, valkey_url: str, s3_endpoint: str, bucket: Any, is_public: bool
) -> None:
    content = b'{"text": "one"}\n{"text": "two"}\n'
    settings = Settings(
        data_dir=tmp_path,
        models_dir=models_dir,
        redis_url=valkey_url,
        store_url=f"s3://{bucket.name}/production",
        s3_endpoint_url=s3_endpoint,
        s3_public_endpoint_url=s3_endpoint if is_public else None,
    )
    with running_application(settings) as service, service.tenant() as tenant:
        file_id = tenant.upload(content, "two rows.jsonl")
        link = tenant.http.get(f"/v1/files/{file_id}/content")

        assert link.status_code == (302 if is_public else 200)
        assert link.headers.get("location", "").startswith(s3_endpoint) is is_public
        assert tenant.client.files.content(file_id).read() == content
        assert tenant.http.get(f"/v1/files/{file_id}/inspection").json()["rows"] == 2
        assert tenant.client.files.delete(file_id).deleted
        assert list(bucket.objects.all()) == []
