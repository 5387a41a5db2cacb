"""Taking a file: its bytes to the store while they arrive, for the API's route and the dashboard's alike."""

from fastapi import Request

from api.multipart import ReceivedForm, receive_form
from core.accounts.service import Actor
from core.datasets import service as files
from core.runtime import Runtime


async def receive_upload(
    request: Request, runtime: Runtime, actor: Actor, more_fields: tuple[str, ...] = ()
) -> ReceivedForm:
    """The form with its file stored, which has no row yet.

    Raises what `receive_form` and `store_upload` raise, RateLimitError where too many uploads wait, and
    SlowRequestError where others wait for the place of one that hardly moves.
    """
    async with request.app.state.upload_places.hold(actor.organization_id) as place:
        return await receive_form(
            request.headers.get("content-type", ""),
            place.watch(request.stream()),
            request.app.state.upload_limiter,
            lambda filename, chunks: files.store_upload(runtime, actor.organization_id, filename, chunks),
            lambda upload: runtime.store.delete(upload.stored.key),
            more_fields=more_fields,
        )
