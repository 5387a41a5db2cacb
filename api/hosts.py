"""Which names this service answers to.

A page on the internet can have its own name resolve to 127.0.0.1 and then talk, in its visitor's browser, to a service
that only listens there (DNS rebinding). The name it does so under is in the Host header.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from api.schemas.errors import envelope
from core.errors import UnknownHostError


class HostMiddleware:
    """Refuses requests for other hosts: those not in `allowed`, or, where that is None, foreign ones over loopback."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str] | None, public_url: str | None) -> None:
        self.app = app
        self._allowed = None if allowed is None else {name.lower() for name in allowed}
        self._public = (urlsplit(public_url).hostname or "") if public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or self._answers_to(_name(host), scope):
            await self.app(scope, receive, send)
            return
        refusal = UnknownHostError(
            f"This service does not answer to the host {host[:100]!r}. Its administrator names it in "
            "TUNEWRIGHT_PUBLIC_URL, or in TUNEWRIGHT_ALLOWED_HOSTS."
        )
        await JSONResponse(envelope(refusal.body), status_code=refusal.status)(scope, receive, send)

    def _answers_to(self, name: str, scope: Scope) -> bool:
        if self._allowed is not None:
            return name in self._allowed or name == self._public
        server = scope.get("server")
        if server is None or not _is_loopback(server[0]):
            return True
        return name in ("", "localhost", self._public) or name.endswith(".localhost") or _is_loopback(name)


def _name(host: str) -> str:
    """The host without its port, in lower case, and without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
