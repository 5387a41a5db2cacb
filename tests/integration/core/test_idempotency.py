"""A create that is sent twice makes one object."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from core.db.session import Database
from core.errors import ConflictError, InsufficientCreditsError
from core.idempotency.service import CreateRequest, once
from core.ids import new_id

FIRST = CreateRequest("key_1", "/v1/fine_tuning/jobs", "a" * 64, None, is_retry=False, window_seconds=600)


def _create(database: Database, request: CreateRequest) -> str:
    return database.run(lambda session: once(session, request, lambda: new_id("ftjob-")))


def test_a_retry_returns_the_first_result(database: Database) -> None:
    first = _create(database, FIRST)
    assert _create(database, replace(FIRST, is_retry=True)) == first
    assert _create(database, replace(FIRST, is_retry=True)) == first


def test_the_same_request_on_purpose_makes_another(database: Database) -> None:
    assert _create(database, FIRST) != _create(database, FIRST)


@pytest.mark.parametrize("change", [{"credential": "key_2"}, {"path": "/v1/plans"}, {"body_sha256": "b" * 64}])
def test_a_retry_of_something_else_is_no_retry(database: Database, change: dict[str, str]) -> None:
    first = _create(database, FIRST)
    assert _create(database, replace(FIRST, is_retry=True, **change)) != first


def test_a_retry_after_the_window_is_a_new_request(database: Database) -> None:
    first = _create(database, FIRST)
    assert _create(database, replace(FIRST, is_retry=True, window_seconds=0)) != first


def test_an_idempotency_key_binds_its_body(database: Database) -> None:
    keyed = replace(FIRST, idempotency_key="mine")
    first = _create(database, keyed)
    assert _create(database, keyed) == first
    with pytest.raises(ConflictError) as raised:
        _create(database, replace(keyed, body_sha256="b" * 64))
    assert raised.value.code == "idempotency_key_reused"


def test_a_create_that_failed_is_not_remembered(database: Database) -> None:
    def fail() -> str:
        raise InsufficientCreditsError("none")

    with pytest.raises(InsufficientCreditsError):
        database.run(lambda session: once(session, FIRST, fail))
    assert _create(database, replace(FIRST, is_retry=True)).startswith("ftjob-")


def test_retries_at_the_same_moment_make_one_object(database: Database) -> None:
    keyed = replace(FIRST, idempotency_key="raced")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: _create(database, keyed), range(8)))) == 1
