"""The processes that run jobs: Celery tasks that claim, a supervisor that watches, a child that trains."""
