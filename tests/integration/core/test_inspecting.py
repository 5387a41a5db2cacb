"""Whatever is in a file, its inspection ends: in turns, once at a time, and not tried for ever. On both databases."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import cast

import pytest

from core.artifacts.store import ArtifactStore
from core.datasets import claims, inspecting
from core.datasets import service as files
from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.db.base import utc_now
from core.db.session import Database
from core.errors import StoreError
from core.limited import Shares
from core.retention.files import delete_file
from core.runtime import Runtime
from tests.integration.core.books import Owner, open_organization, open_runtime
from tests.waiting import wait_for

ROWS = b"\n".join(json.dumps({"prompt": f"Does lamp {n} glow?", "completion": "No."}).encode() for n in range(20))
MANY = b"\n".join([ROWS] * 20_000)  # some seconds of reading


@pytest.fixture
def runtime(database: Database, tmp_path: Path) -> Iterator[Runtime]:
    runtime = open_runtime(database, tmp_path)
    yield runtime
    runtime.children.close()


@pytest.fixture
def owner(database: Database) -> Owner:
    return open_organization(database)


def upload(runtime: Runtime, owner: Owner, content: bytes = ROWS) -> str:
    made = files.store_upload(runtime, owner.organization_id, "rows", [content])
    create = runtime.database.run
    return create(lambda session: files.create_file(session, owner.organization_id, made, FilePurpose.FINE_TUNE).id)


def file_of(runtime: Runtime, file_id: str) -> StoredFile:
    with runtime.database.read() as session:
        return session.get_one(StoredFile, file_id)


def change(runtime: Runtime, file_id: str, edit: Callable[[StoredFile], None]) -> None:
    runtime.database.run(lambda session: edit(session.get_one(StoredFile, file_id)))


def test_organizations_take_turns(runtime: Runtime, owner: Owner) -> None:
    other = open_organization(runtime.database)
    names = {upload(runtime, owner): f"a{number}" for number in range(4)}
    names[upload(runtime, other)] = "b"
    order = []
    while (file := runtime.database.run(lambda session: claims.claim_next(session, FileStatus.UPLOADED))) is not None:
        order.append(names[file.id])
    assert order == ["a0", "b", "a1", "a2", "a3"]


def test_an_organization_whose_file_is_inspected_can_be_passed_over(runtime: Runtime, owner: Owner) -> None:
    other = open_organization(runtime.database)
    held, waiting = (upload(runtime, owner) for _ in range(2))
    others = upload(runtime, other)
    shares = Shares(1)
    claim = partial(claims.claim_next_of, runtime.database, FileStatus.UPLOADED)
    with shares.next(claim) as first:
        assert first is not None
        assert first.id == held
        # Whoever deletes a file that is being read has its share all the same.
        runtime.database.run(lambda session: delete_file(session, owner.organization_id, held))
        with shares.next(claim) as second:
            assert second is not None
            assert second.id == others
            with shares.next(claim) as third:
                assert third is None
    with shares.next(claim) as file:
        assert file is not None
        assert file.id == waiting


def test_a_file_is_inspected_once_at_a_time(runtime: Runtime, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = upload(runtime, owner)
    held = runtime.database.run(lambda session: claims.claim_next(session, FileStatus.UPLOADED))
    assert held is not None
    assert not inspecting.inspect_next(runtime)
    monkeypatch.setattr(inspecting, "ELSEWHERE_SECONDS", 0.0)
    inspecting.ensure_inspected(runtime, file_id)
    assert file_of(runtime, file_id).status is FileStatus.UPLOADED
    change(runtime, file_id, lambda file: setattr(file, "claimed_until", utc_now() - timedelta(seconds=1)))
    inspecting.ensure_inspected(runtime, file_id)
    assert file_of(runtime, file_id).status is FileStatus.PROCESSED


def test_a_file_that_ends_its_child_becomes_an_error(runtime: Runtime, owner: Owner) -> None:
    file_id = upload(runtime, owner, MANY)
    for attempt in range(1, claims.MOST_ATTEMPTS + 1):
        assert file_of(runtime, file_id).status is FileStatus.UPLOADED
        thread = Thread(target=inspecting.inspect_next, args=(runtime,))
        thread.start()
        wait_for(lambda: runtime.children._busy, what="the inspection")
        for child in list(runtime.children._busy):
            child.kill()
        thread.join()
        assert file_of(runtime, file_id).attempts == attempt
    found = file_of(runtime, file_id)
    assert found.status is FileStatus.ERROR
    assert "ended with SIGKILL" in (found.status_details or "")
    assert not inspecting.inspect_next(runtime)


def test_a_file_that_ends_whole_processes_becomes_an_error(runtime: Runtime, owner: Owner) -> None:
    file_id = upload(runtime, owner)
    for _ in range(claims.MOST_ATTEMPTS):  # each of them died without a word
        assert runtime.database.run(lambda session: claims.claim(session, file_id, FileStatus.UPLOADED)) is not None
        change(runtime, file_id, lambda file: setattr(file, "claimed_until", utc_now() - timedelta(seconds=1)))
    assert inspecting.inspect_next(runtime)
    found = file_of(runtime, file_id)
    assert found.status is FileStatus.ERROR
    assert "has ended 3 times without a result" in (found.status_details or "")


class Away:
    """A store that cannot be reached."""

    def materialize(self, key: str, directory: Path) -> Path:
        raise StoreError(f"{key} cannot be read into {directory}.")


def test_a_store_that_is_away_is_not_the_files_fault(runtime: Runtime, owner: Owner) -> None:
    file_id = upload(runtime, owner)
    without_store = replace(runtime, store=cast(ArtifactStore, Away()))
    for _ in range(claims.MOST_ATTEMPTS + 1):
        with pytest.raises(StoreError):
            inspecting.inspect_next(without_store)
    assert inspecting.inspect_next(runtime)
    assert file_of(runtime, file_id).status is FileStatus.PROCESSED


@pytest.mark.parametrize(
    "content",
    [b"PAR1" + b"\xff\xfe" * 600 + b"PAR1", b"\x1f\x8b\x08\x00" + b"\xff" * 60, b"[" * 90_000],
    ids=["parquet", "gzip", "deep"],
)
def test_damaged_files_are_errors_with_a_sentence(runtime: Runtime, owner: Owner, content: bytes) -> None:
    file_id = upload(runtime, owner, content)
    while inspecting.inspect_next(runtime):
        pass
    found = file_of(runtime, file_id)
    assert found.status is FileStatus.ERROR
    assert len(found.status_details or "") > 20
