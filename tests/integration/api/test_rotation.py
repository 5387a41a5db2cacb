"""Changing the service's secret key signs nobody out, spends no link, and loses nothing that is encrypted."""

from pathlib import Path

import httpx
from pydantic import SecretStr

from core.accounts import service as accounts
from core.accounts.models import User
from core.accounts.sealing import seal, unseal
from core.settings import Settings
from tests.integration.api.server import running_application
from tests.people import follow_link

FIRST, SECOND = "first " * 8, "second " * 8


def test_a_session_a_link_a_key_and_what_is_sealed_outlive_a_new_secret_key(tmp_path: Path, valkey_url: str) -> None:
    before = Settings(data_dir=tmp_path, redis_url=valkey_url, secret_key=SecretStr(FIRST))
    with running_application(before) as service:
        _, user_id, key = service.enrol()
        with service.runtime.database.transaction() as session:
            user = session.get_one(User, user_id)
            used, outstanding = (accounts.create_sign_in_link(session, user, 3600) for _ in range(2))
        with httpx.Client(base_url=service.base_url) as browser:
            follow_link(browser, f"/sign-in?token={used}")
            cookies = dict(browser.cookies)
            assert browser.get("/v1/account").status_code == 200
    sealed = seal(before, "test", "a token of the hub")

    after = before.model_copy(update={"secret_key": SecretStr(SECOND), "former_secret_key": SecretStr(FIRST)})
    with running_application(after) as service:
        with httpx.Client(base_url=service.base_url, cookies=cookies) as browser:
            assert browser.get("/v1/account").json()["user"]["id"] == user_id
        with httpx.Client(base_url=service.base_url, headers={"authorization": f"Bearer {key}"}) as client:
            assert client.get("/v1/account").status_code == 200
        with httpx.Client(base_url=service.base_url) as browser:
            assert follow_link(browser, f"/sign-in?token={outstanding}").status_code == 303
            assert browser.get("/v1/account").json()["user"]["id"] == user_id
    assert unseal(after, "test", sealed) == "a token of the hub"
    alone = after.model_copy(update={"former_secret_key": None})
    assert unseal(alone, "test", seal(after, "test", unseal(after, "test", sealed))) == "a token of the hub"
