"""Help: a first program with the reader's own address and key in it, and the pages of `docs/guide`."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from fastapi import Depends, Request, Response
from markdown_it import MarkdownIt
from markupsafe import Markup

from api import pages
from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep
from api.flash import carry, read
from api.forms import check_form
from core.accounts import service as accounts
from core.accounts.models import Scope
from core.errors import NotFoundError
from core.registry import base_models

KEY_NAME = "Quick start"
NO_KEY = "tw-YOUR-KEY"
STEPS = (
    ("install", "Install the client"),
    ("client", "Connect"),
    ("start_job", "Upload and start"),
    ("follow", "Follow it"),
    ("download", "Download the adapter"),
)
PACKAGE = Path(__file__).parents[1]
# A wheel ships the pages inside the package; a checkout has them among its documents.
PAGES = next(place for place in (PACKAGE / "guide", PACKAGE.parent / "docs" / "guide") if place.is_dir())
TITLES = {
    "how-much-data": "How much data is enough?",
    "what-the-loss-says": "What do the loss and the verdict say?",
    "what-to-try-next": "What to try next",
}

router = page_router()


@router.get("/guide")
def show_guide(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """The quick start, with the key in it that was just made: it is shown this once."""
    key = read(request).get("key")
    local = base_models.local_model_ids(runtime.settings.resolved_models_dir)
    values = {
        "base_url": (runtime.settings.public_url or str(request.base_url)).rstrip("/"),
        "key": key or NO_KEY,
        "model": local[0] if local else "llama-3.1-8b-instruct",
    }
    steps = [(name, title, pages.render_text(f"snippets/{name}.txt", **values)) for name, title in STEPS]
    return show(
        request,
        runtime,
        actor,
        "guide.html",
        current="guide",
        steps=steps,
        titles=TITLES,
        key=key,
        key_name=KEY_NAME,
        no_key=NO_KEY,
        can_make_key=actor.scope.includes(Scope.WRITE),
    )


@router.post("/guide", dependencies=[Depends(check_form)])
def make_key(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Make a key for the quick start."""
    new = runtime.database.run(lambda session: accounts.create_api_key_for(session, actor, KEY_NAME, scope=Scope.WRITE))
    return carry(request, "/guide", key=new.secret)


@router.get("/guide/{name}")
def show_page(request: Request, runtime: RuntimeDep, actor: ActorDep, name: str) -> Response:
    """A page of help for people without code."""
    if name not in TITLES:
        raise NotFoundError(f"The guide has no page {name!r}. It has {', '.join(TITLES)}.")
    return show(
        request,
        runtime,
        actor,
        "guide_page.html",
        current="guide",
        title=TITLES[name],
        text=_rendered(name),
        others={one: title for one, title in TITLES.items() if one != name},
    )


@cache
def _rendered(name: str) -> Markup:
    """The page as HTML: its sections can be linked to, and its links to other pages lead to them."""
    markdown = MarkdownIt()
    tokens = markdown.parse((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    for token, inner in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", "-".join(re.findall(r"[a-z]+", inner.content.lower())))
        for child in token.children or []:
            target = str(child.attrGet("href") or "")
            if child.type == "link_open" and target.endswith(".md"):
                child.attrSet("href", f"/guide/{target.removesuffix('.md')}")
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 (our own documents)
