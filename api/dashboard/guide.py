"""A first program, with the reader's own address in it and, made for it, a key."""

from fastapi import Depends, Request, Response

from api import pages
from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep
from api.flash import carry, read
from api.forms import check_form
from core.accounts import service as accounts
from core.accounts.models import Scope
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
