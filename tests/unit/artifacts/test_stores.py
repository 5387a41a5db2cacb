"""One contract, two stores: a directory, and a bucket on a real S3 server."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import httpx
import pytest

from core.artifacts.local import LocalStore
from core.artifacts.s3 import PART_BYTES, S3Store
from core.artifacts.store import ArtifactStore, open_store
from core.db.base import utc_now
from core.errors import FileTooLargeError, InvalidRequestError, NotFoundError, StoreError

BUCKET = "artifacts"  # what the `bucket` fixture makes


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return open_store((tmp_path / "store").as_uri())
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket.name}/production", endpoint_url=request.getfixturevalue("s3_endpoint"))


def contents(store: ArtifactStore, key: str) -> bytes:
    with store.open(key) as stream:
        return stream.read()


def test_what_is_put_is_read_back_with_its_size_and_hash(store: ArtifactStore) -> None:
    stored = store.put("org/files/file-1", iter([b"hello ", b"", b"world"]))
    assert (stored.key, stored.size_bytes) == ("org/files/file-1", 11)
    assert stored.sha256 == hashlib.sha256(b"hello world").hexdigest()
    assert store.exists("org/files/file-1")
    assert contents(store, "org/files/file-1") == b"hello world"


def test_an_object_of_several_parts_arrives_whole(store: ArtifactStore) -> None:
    piece = bytes(range(256)) * 4096  # 1 MiB
    count = 2 * PART_BYTES // len(piece) + 1
    stored = store.put("big", (piece for _ in range(count)))
    assert stored.size_bytes == count * len(piece)
    with store.open("big") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(700_001):
            digest.update(chunk)
    assert digest.hexdigest() == stored.sha256


def test_an_empty_object_is_an_object(store: ArtifactStore) -> None:
    assert store.put("empty", []).size_bytes == 0
    assert contents(store, "empty") == b""


def test_a_second_put_replaces_the_first(store: ArtifactStore) -> None:
    store.put("a/b", [b"old and longer"])
    store.put("a/b", [b"new"])
    assert contents(store, "a/b") == b"new"


def test_a_file_is_put_and_materialized(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "adapter.zip"
    source.write_bytes(b"weights")
    stored = store.put_file("org/jobs/1/adapter.zip", source)
    path = store.materialize("org/jobs/1/adapter.zip", tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "adapter.zip"
    assert path.read_bytes() == b"weights"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == stored.sha256


def test_a_materialized_file_outlives_the_object(store: ArtifactStore, tmp_path: Path) -> None:
    store.put("data", [b"rows"])
    path = store.materialize("data", tmp_path / "run")
    store.delete("data")
    store.put("data", [b"other rows"])
    assert path.read_bytes() == b"rows"
    assert store.materialize("data", tmp_path / "run").read_bytes() == b"other rows"


def test_what_is_there_and_what_never_arrived_is_told_by_age(
    store: ArtifactStore, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store.put("org/jobs/1/a", [b"a"])
    store.put("org/files/b", [b"b"])
    if isinstance(store, LocalStore):
        (tmp_path / "store" / ".incoming" / "torn").write_bytes(b"half")
    else:
        client = boto3.client("s3", endpoint_url=request.getfixturevalue("s3_endpoint"))
        client.create_multipart_upload(Bucket=BUCKET, Key="production/org/files/c")
    later, earlier = utc_now() + timedelta(hours=1), utc_now() - timedelta(hours=1)
    assert set(store.keys_before(later)) == {"org/jobs/1/a", "org/files/b"}
    assert list(store.keys_before(earlier)) == []
    if isinstance(store, LocalStore):  # the S3 server of the tests says 2010 of every upload
        assert store.discard_incomplete(earlier) == 0
    assert [store.discard_incomplete(later) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("size", [11, 3 * PART_BYTES])
def test_too_large_a_stream_stops_at_once_and_leaves_nothing(
    store: ArtifactStore, size: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(max(1, size // 10))

    with pytest.raises(FileTooLargeError) as caught:
        store.put("org/large", chunks(), max_bytes=size)
    assert caught.value.status == 413
    assert f"{size:,}" in caught.value.message
    assert taken <= 12
    assert_nothing_is_left(store, tmp_path, request)


@pytest.mark.parametrize("size", [10, 2 * PART_BYTES])
def test_a_stream_that_breaks_leaves_nothing(
    store: ArtifactStore, size: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(size)
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        store.put("org/broken", chunks())
    assert_nothing_is_left(store, tmp_path, request)


def assert_nothing_is_left(store: ArtifactStore, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if isinstance(store, LocalStore):
        assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
        return
    client = boto3.client("s3", endpoint_url=request.getfixturevalue("s3_endpoint"))
    assert client.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0
    assert client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_the_limit_itself_is_allowed(store: ArtifactStore) -> None:
    assert store.put("exact", [b"12345", b"67890"], max_bytes=10).size_bytes == 10


def test_what_does_not_exist_is_not_found(store: ArtifactStore, tmp_path: Path) -> None:
    assert not store.exists("org/none")
    with pytest.raises(NotFoundError):
        store.open("org/none")
    with pytest.raises(NotFoundError):
        store.materialize("org/none", tmp_path / "run")


def test_deleting_twice_is_fine(store: ArtifactStore) -> None:
    store.put("org/x", [b"1"])
    store.delete("org/x")
    store.delete("org/x")
    assert not store.exists("org/x")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../secret",
        "a/../../b",
        "a//b",
        "a/",
        ".incoming/x",
        "a/.b",
        "a\\b",
        "a\0b",
        "a\n",
        "x" * 999,
    ],
)
def test_keys_cannot_leave_the_store(store: ArtifactStore, key: str, tmp_path: Path) -> None:
    for act in (
        lambda: store.put(key, [b"x"]),
        lambda: store.open(key),
        lambda: store.delete(key),
        lambda: store.exists(key),
        lambda: store.materialize(key, tmp_path / "run"),
        lambda: store.download_url(key, "x", 60),
    ):
        with pytest.raises(InvalidRequestError):
            act()


def test_a_healthy_store_passes_its_check(store: ArtifactStore) -> None:
    store.check()


def test_stores_can_key_a_cache(store: ArtifactStore) -> None:
    assert {store: 1}[store] == 1


def test_a_presigned_link_downloads_under_the_given_name(bucket: object, s3_endpoint: str) -> None:
    store = S3Store(
        BUCKET,
        prefix="production",
        endpoint_url=s3_endpoint,
        public_endpoint_url=s3_endpoint.replace("127.0.0.1", "localhost"),
    )
    store.put("org/adapter", [b"weights"])
    url = store.download_url("org/adapter", 'my "fine" modèle.zip', 60)
    answer = httpx.get(str(url))
    assert answer.url.host == "localhost"
    assert answer.content == b"weights"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="my _fine_ mod_le.zip"')
    assert "filename*=UTF-8''my%20%22fine%22%20mod%C3%A8le.zip" in disposition


def test_an_endpoint_that_may_be_private_gives_no_links(bucket: object, s3_endpoint: str) -> None:
    assert S3Store(BUCKET, endpoint_url=s3_endpoint).download_url("a", "a.zip", 60) is None
    assert str(S3Store(BUCKET).download_url("a", "a.zip", 60)).startswith("https://artifacts.s3.amazonaws.com/")


def test_a_directory_has_no_links(tmp_path: Path) -> None:
    assert LocalStore(tmp_path).download_url("a", "a.zip", 60) is None


def test_a_bucket_that_does_not_exist_fails_the_check(bucket: object, s3_endpoint: str) -> None:
    with pytest.raises(StoreError, match="NoSuchBucket"):
        S3Store("elsewhere", endpoint_url=s3_endpoint).check()


def test_a_bucket_out_of_reach_is_a_store_error(bucket: object) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        S3Store(BUCKET, endpoint_url="http://127.0.0.1:9").exists("a")


def test_a_directory_that_cannot_be_written_fails_the_check(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(StoreError):
        LocalStore(blocked).check()
    with pytest.raises(StoreError):
        LocalStore(blocked).put("a", [b"x"])


@pytest.mark.parametrize("url", ["", "file:", "file:///", "ftp://x/y", "s3://", "file://host/dir"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        open_store(url)
    assert caught.value.code == "invalid_store_url"


def test_a_file_url_may_hold_escapes(tmp_path: Path) -> None:
    assert open_store((tmp_path / "a b").as_uri()) == LocalStore(tmp_path / "a b")
