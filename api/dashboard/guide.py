"""A first program, with the reader's own address in it."""

from fastapi import Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep
from core.registry import base_models

router = page_router()

_INSTALL = "pip install openai"
_CLIENT = """from openai import OpenAI

client = OpenAI(base_url="{base_url}/v1", api_key="{key}")"""
_JOB = """file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    model="{model}",
    training_file=file.id,
    suffix="support",
    extra_body={{"priority": "auto", "credit_code": "YOUR-CODE"}},
)
print(job.id)"""
_FOLLOW = """for event in client.fine_tuning.jobs.list_events(job.id, limit=100):
    print(event.message)"""
_DOWNLOAD = """curl -L -o adapter.zip -H "Authorization: Bearer {key}" \\
  {base_url}/v1/fine_tuning/jobs/JOB_ID/artifacts/adapter.zip"""


@router.get("/guide")
def show_guide(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """The quick start."""
    local = base_models.local_model_ids(runtime.settings.resolved_models_dir)
    values = {
        "base_url": (runtime.settings.public_url or str(request.base_url)).rstrip("/"),
        "key": "tw-YOUR-KEY",
        "model": local[0] if local else "llama-3.1-8b-instruct",
    }
    steps = [
        ("install", "Install the client", _INSTALL),
        ("client", "Connect", _CLIENT.format(**values)),
        ("job", "Upload and start", _JOB.format(**values)),
        ("follow", "Follow it", _FOLLOW),
        ("download", "Download the adapter", _DOWNLOAD.format(**values)),
    ]
    return show(request, runtime, actor, "guide.html", current="guide", steps=steps)
