"""Making a model of a checkpoint: what one step of a run was, kept and used like what the run itself published."""

from sqlalchemy.orm import Session

from core.artifacts.models import Checkpoint
from core.audit import service as audit
from core.audit.models import AuditType
from core.db.base import utc_now
from core.events import service as events
from core.jobs.models import Job
from core.jobs.progress import model_name
from core.jobs.service import hold_own_job, take_checkpoint
from core.registry.models import FineTunedModel


def publish_checkpoint(session: Session, organization_id: str, job_id: str, checkpoint_id: str) -> FineTunedModel:
    """Publish a stored checkpoint under a model id of its own; it is kept until that model is deleted.

    Publishing twice is no error. Raises what `take_checkpoint` raises.
    """
    job = hold_own_job(session, organization_id, job_id)
    checkpoint = take_checkpoint(session, organization_id, job_id, checkpoint_id)
    model_id = checkpoint_model_name(job, checkpoint)
    model = session.get(FineTunedModel, model_id)
    if model is not None and model.deleted_at is None:
        return model
    if model is None:
        model = FineTunedModel(
            id=model_id,
            organization_id=organization_id,
            job_id=job_id,
            base_model=job.model,
            checkpoint_id=checkpoint.id,
            valid_loss=checkpoint.valid_loss,
        )
        session.add(model)
    model.deleted_at, model.created_at = None, utc_now()
    events.append(session, job_id, f"Published the checkpoint of step {checkpoint.step:,} as {model_id}")
    session.flush()
    audit.record(
        session,
        AuditType.CHECKPOINT_PUBLISHED,
        organization_id=organization_id,
        object_id=checkpoint.id,
        model=model_id,
    )
    return model


def checkpoint_model_name(job: Job, checkpoint: Checkpoint) -> str:
    """The id of the model that a checkpoint makes, or would make."""
    return f"{model_name(job)}:ckpt-step-{checkpoint.step}"
