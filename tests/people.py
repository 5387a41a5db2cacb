"""Organizations, who is in them, and how they sign in."""

import re

import httpx
from sqlalchemy.orm import Session

from core.accounts import service as accounts
from core.accounts.models import Organization, User
from core.ids import new_id


def add_user(session: Session, name: str = "Tester", *, is_admin: bool = False) -> User:
    """Someone new, alone in an organization of their own."""
    organization = Organization(id=new_id("org-"), name="Test")
    session.add(organization)
    session.flush()
    user = User(id=new_id("user-"), organization_id=organization.id, name=name, is_admin=is_admin)
    session.add(user)
    session.flush()
    return user


def session_token(session: Session, user_id: str) -> str:
    """What the cookie of a browser holds that this user has signed in with."""
    link = accounts.create_sign_in_link(session, session.get_one(User, user_id), 60)
    return accounts.sign_in_with_link(session, link, 3600)


def follow_link(browser: httpx.Client, link: str) -> httpx.Response:
    """Open a one-time sign-in link and press its button; the answer to that, or the page where there is no button."""
    page = browser.get(link)
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', page.text))
    return (
        browser.post("/sign-in/link", data=fields, headers={"sec-fetch-site": "same-origin"})
        if "token" in fields
        else page
    )
