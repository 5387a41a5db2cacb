"""A person at a browser: signed in, and watched for what must never happen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page

from core.accounts import service as accounts
from tests.e2e.service import Service
from tests.people import add_user
from tests.waiting import PATIENCE_SECONDS

DESKTOP = {"width": 1360, "height": 900}
PHONE = {"width": 360, "height": 740}


def owner_of(service: Service) -> str:
    """A one-time sign-in link of the installation's owner."""
    with service.database.transaction() as session:
        token = accounts.create_sign_in_link(session, accounts.ensure_owner(session), 600)
    return f"{service.base_url}/sign-in?token={token}"


def enrol(service: Service) -> str:
    """A one-time sign-in link of someone new, in an organization of their own."""
    with service.database.transaction() as session:
        token = accounts.create_sign_in_link(session, add_user(session, "Nia"), 600)
    return f"{service.base_url}/sign-in?token={token}"


@dataclass
class Visitor:
    """A page of a browser of its own, everything it asked for, and everything it complained about."""

    service: Service
    context: BrowserContext
    page: Page
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def signed_in(cls, service: Service, browser: Browser, link: str, **options: Any) -> Iterator["Visitor"]:
        """Open a browser and follow the link."""
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **options})
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        visitor = cls(service, context, context.new_page())
        visitor.watch(visitor.page)
        visitor.page.goto(link)
        visitor.page.get_by_role("button", name="Sign in here").click()
        visitor.page.wait_for_url(f"{service.base_url}/")
        try:
            yield visitor
        finally:
            context.close()

    def watch(self, page: Page) -> None:
        """Write down what the page asks for and complains about."""
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._note(message.type, message.text))

    def _note(self, kind: str, text: str) -> None:
        # An error page is an error status on purpose, and the browser says so.
        if kind == "error" and "the server responded with a status of 4" not in text:
            self.complaints.append(text)

    def open(self, path: str) -> Page:
        """Go to a page of the service."""
        self.page.goto(self.service.base_url + path)
        return self.page

    def check(self) -> None:
        """Nothing left the origin, no script failed, and the content policy was never violated."""
        foreign = [url for url in self.requested if not url.startswith((self.service.base_url, "data:", "blob:"))]
        assert foreign == []
        assert self.complaints == []
