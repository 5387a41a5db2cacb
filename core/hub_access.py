"""As whom the model hub is asked: with a token that was given for this, or as nobody.

The hub's library looks for a token in the environment and in the home directory by itself. Whatever asks the hub here
hands it an access, which says for every request whose it is.
"""

from dataclasses import dataclass
from typing import Literal

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status
from pydantic import SecretStr

from core.errors import InvalidRequestError

__all__ = ["ANONYMOUS", "CONNECT_SECONDS", "HubAccess", "hint_of", "is_away", "of_this_machine"]

CONNECT_SECONDS = 10.0
HINT_CHARACTERS = 4
WHERE = "under Settings, with PUT /v1/hub_token or, for commands, as HF_TOKEN"


@dataclass(frozen=True)
class HubAccess:
    """What the hub is told about who asks. Its text and its logs never show the token."""

    token: SecretStr | None = None
    is_this_machines: bool = False  # of who runs the process, and so owns what it has fetched

    @property
    def credential(self) -> str | Literal[False]:
        """For the hub's library: the token, or that it must not look for one."""
        return self.token.get_secret_value() if self.token is not None else False

    @property
    def advice(self) -> str:
        """What to do about a repository that this access does not open."""
        if self.token is None:
            return f"If it is private or gated, add your own hub token: {WHERE}."
        return (
            f"The hub token in use, …{hint_of(self.token)}, does not open it: have its account accept the terms or be "
            f"let in, or give another token: {WHERE}."
        )

    def api(self) -> HfApi:
        """The hub's API, asked with this access."""
        return HfApi(token=self.credential)

    def check_files(self, kind: Literal["model", "dataset"], repository: str) -> None:
        """Ask whether the files of a gated repository can be read, too. Raises the hub library's errors.

        The listing of a gated repository is public; the library's own question has no time limit.
        """
        self._ask(f"/api/{kind}s/{repository}/auth-check")

    def account(self) -> str:
        """The name of the account that the token belongs to. Raises the hub library's errors and httpx2's."""
        return str(self._ask("/api/whoami-v2").json().get("name", ""))[:200]

    def refusal(self, error: Exception, param: str | None) -> InvalidRequestError | None:
        """The error for a token that the hub does not take at all; None where that is not what it said."""
        if self.token is None or not isinstance(error, HfHubHTTPError) or error.response.status_code != 401:
            return None
        return InvalidRequestError(
            f"The hub does not take the hub token …{hint_of(self.token)}: it is misspelt, expired or revoked. Give "
            f"another one: {WHERE}.",
            code="hub_token_refused",
            param=param,
        )

    def _ask(self, path: str) -> httpx2.Response:
        url, headers = self.api().endpoint + path, build_hf_headers(token=self.credential)
        answer: httpx2.Response = get_session().get(url, headers=headers, timeout=CONNECT_SECONDS)
        hf_raise_for_status(answer)
        return answer


ANONYMOUS = HubAccess()


def of_this_machine() -> HubAccess:
    """The access of whoever runs this process: HF_TOKEN, or the token that the hub's own login stored."""
    token = get_token()
    return HubAccess(SecretStr(token) if token else None, is_this_machines=True)


def hint_of(token: SecretStr) -> str:
    """The last characters of a token, to tell it from others."""
    return token.get_secret_value()[-HINT_CHARACTERS:]


def is_away(error: Exception) -> bool:
    """Whether the hub gave no answer at all, rather than a no."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, OfflineModeIsEnabled | httpx2.TransportError)
