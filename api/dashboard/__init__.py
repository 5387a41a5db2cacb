"""The dashboard: pages over the same services as the API. Each page is a URL; parts of it answer htmx."""

from api.dashboard import (
    accounts,
    credits,
    data,
    fleet,
    guide,
    hub_data,
    job,
    jobs,
    models,
    new,
    organization,
    settings,
    start,
)

PAGES = (start, new, data, hub_data, jobs, job, models, credits, fleet, guide, settings, accounts, organization)

__all__ = ["PAGES"]
