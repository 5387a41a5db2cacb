"""The dashboard: pages over the same services as the API. Each page is a URL; parts of it answer htmx."""

from api.dashboard import credits, data, fleet, guide, hub_data, job, jobs, models, new, settings, start

PAGES = (start, new, data, hub_data, jobs, job, models, credits, fleet, guide, settings)

__all__ = ["PAGES"]
