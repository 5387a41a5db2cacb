"""Plans and jobs as they are asked for: with what finished jobs have taught, and once where asked for twice."""

from contextlib import nullcontext
from dataclasses import replace

from sqlalchemy.orm import Session

from core.accounts.service import Actor
from core.idempotency.service import CreateRequest, earlier, once
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.service import JobRequest
from core.ledger import codes
from core.planning import history
from core.plans import service as plans
from core.plans.matching import check_same_run
from core.plans.models import Plan
from core.plans.service import PlanDraft, PlanInputs, PlanRequest
from core.runtime import Runtime


def gather(runtime: Runtime, actor: Actor, request: PlanRequest) -> PlanInputs:
    """Everything that a plan for this request depends on. Raises what `plans.gather_inputs` raises."""
    return plans.gather_inputs(runtime, actor, request, lambda session: history.learned(session, runtime.settings))


def draft_plan(runtime: Runtime, actor: Actor, request: PlanRequest) -> PlanDraft:
    """Plan a run against the data set and the fleet as they are now. Holds no transaction while it computes.

    Raises what `plans.gather_inputs` and `plans.draft_from` raise.
    """
    return plans.draft_from(runtime, gather(runtime, actor, request))


def create_plan(runtime: Runtime, actor: Actor, request: PlanRequest, create_request: CreateRequest) -> Plan:
    """Draft and keep a plan. A retried create returns the first one. Raises what `draft_plan` raises."""
    with runtime.database.read() as session:
        plan_id = earlier(session, create_request)
        if plan_id is not None:
            return plans.get_plan(session, actor, plan_id)
    draft = draft_plan(runtime, actor, request)

    def save(session: Session) -> Plan:
        plan_id = once(session, create_request, lambda: plans.save_plan(session, runtime, actor, draft).id)
        return plans.get_plan(session, actor, plan_id)

    return runtime.database.run(save)


def submit_job(
    runtime: Runtime, actor: Actor, planned: PlanRequest, request: JobRequest, create_request: CreateRequest
) -> Job:
    """Plan a run, unless the request names a plan, and accept it as a job. A retried create returns the first job.

    Raises what drafting a plan and `create_job` raise, RateLimitError for guessed codes, and InvalidRequestError where
    the plan that is named is for another run than `planned`.
    """
    with runtime.database.read() as session:
        job_id = earlier(session, create_request)
        if job_id is not None:
            return jobs.get_job(session, actor.organization_id, job_id)
    planned = plans.with_files(runtime, actor, planned)
    if request.plan_id is not None:
        with runtime.database.read() as session:
            check_same_run(plans.get_plan(session, actor, request.plan_id), planned)
    if request.plan_id is None:
        request = replace(request, draft=draft_plan(runtime, actor, planned))
    with codes.slow_guessing(runtime, actor) if request.credit_code else nullcontext():
        return runtime.database.run(lambda session: jobs.create_job(session, runtime, actor, request, create_request))
