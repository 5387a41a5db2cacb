"""Every route of the application, the dashboard's too, as its routers have them."""

import re
from collections.abc import Iterable, Mapping

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from api.app import ROUTERS
from api.dashboard import PAGES
from api.deps import authenticate

__all__ = ["asks_who", "filled_in", "form_fields", "routes_that_take"]


def routes_that_take(method: str) -> list[APIRoute]:
    """The routes of an HTTP method, by their paths."""
    routers = [module.router for module in (*ROUTERS, *PAGES)]
    found = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return sorted((route for route in found if method in route.methods), key=lambda route: route.path)


def filled_in(path: str, values: Mapping[str, str], otherwise: str) -> str:
    """A route's path with a value for each of its parameters."""
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: values.get(found[1], otherwise), path)


def form_fields(route: APIRoute) -> list[str]:
    """What a route declares of its body, by the names that are sent."""
    return sorted(set(_fields(route.dependant)))


def asks_who(route: APIRoute) -> bool:
    """Whether a route answers only those it knows."""
    return _asks_who(route.dependant)


def _asks_who(dependant: Dependant) -> bool:
    return dependant.call is authenticate or any(map(_asks_who, dependant.dependencies))


def _fields(dependant: Dependant) -> Iterable[str]:
    yield from (field.alias for field in dependant.body_params)
    for needed in dependant.dependencies:
        yield from _fields(needed)
