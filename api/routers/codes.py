"""Credit codes, for administrators."""

from fastapi import APIRouter, Depends

from api.deps import CreateRequestDep, PageDep, RuntimeDep, authenticate_admin
from api.schemas.base import from_unix_seconds
from api.schemas.codes import CodeCreate, CodeObject, show_code
from api.schemas.errors import CREATE, SIGNED_IN, errors
from api.schemas.lists import ListObject, list_of
from core.ledger import codes

router = APIRouter(prefix="/v1/credit_codes", tags=["Administration"], dependencies=[Depends(authenticate_admin)])


@router.post("", summary="Create a credit code", responses=errors(*CREATE, "code_exists"))
def create_credit_code(runtime: RuntimeDep, body: CodeCreate, create_request: CreateRequestDep) -> CodeObject:
    """Make a word worth credits. Needs the scope `admin`."""
    made = runtime.database.run(
        lambda session: codes.create_code_once(
            session,
            create_request,
            body.code,
            body.credits,
            expires_at=from_unix_seconds(body.expires_at),
            max_redemptions=body.max_redemptions,
            per_account=body.per_account,
        )
    )
    return show_code(made)


@router.get("", summary="List credit codes", responses=errors(*SIGNED_IN))
def list_credit_codes(runtime: RuntimeDep, page: PageDep) -> ListObject[CodeObject]:
    """Every code, newest first, and how often it was redeemed. Needs the scope `admin`."""
    with runtime.database.read() as session:
        return list_of(codes.list_codes(session, after=page.after, limit=page.limit), show_code)


@router.post("/{code}/disable", summary="Disable a credit code", responses=errors(*SIGNED_IN, "code_unknown"))
def disable_credit_code(runtime: RuntimeDep, code: str) -> CodeObject:
    """Make a code worthless from now on; what it gave stays. Disabling twice is no error. Needs the scope `admin`."""
    return show_code(runtime.database.run(lambda session: codes.disable_code(session, code)))
