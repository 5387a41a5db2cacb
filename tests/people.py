"""Organizations and who is in them."""

from sqlalchemy.orm import Session

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
