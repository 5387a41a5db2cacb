"""The new fine-tune's data from the hub: noted at once, and shown as any file when a worker has fetched it."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Form, Request, Response

from api.dashboard.form import kept_fields, new_address
from api.dashboard.page import page_router, see_other
from api.deps import ActorDep, RuntimeDep
from api.forms import check_form
from core.datasets import hub_files
from core.datasets.hub import HUB_SCHEME

router = page_router()


@router.post("/new/hub", dependencies=[Depends(check_form)])
def use_hub_data(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    name: Annotated[str, Form(max_length=300)],
    split: Annotated[str, Form(max_length=100)] = "",
    config: Annotated[str, Form(max_length=100)] = "",
) -> Response:
    """Go on with a split of a data set of the hub, as the address says."""
    asked = {key: value.strip() for key, value in (("config", config), ("split", split)) if value.strip()}
    reference = HUB_SCHEME + name.strip().removeprefix(HUB_SCHEME)
    if asked:
        reference += ("&" if "?" in reference else "?") + urlencode(asked)
    file = hub_files.ensure_file(runtime, actor.organization_id, reference, "name")
    return see_other(new_address({**kept_fields(dict(request.query_params)), "file": file.id}))
