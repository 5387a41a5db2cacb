"""How to use what a job made, ready to copy."""

from collections.abc import Sequence

from api import pages
from core.jobs.models import Job
from planner import catalogue
from planner.plans import TrainingPlan
from planner.setup import Method

_OF_A_MODEL = (("transformers", "transformers", "transformers.txt"), ("vllm", "vLLM", "vllm_model.txt"))
_OF_AN_ADAPTER = (
    ("peft", "PEFT", "peft.txt"),
    ("vllm", "vLLM", "vllm_adapter.txt"),
    ("ollama", "Ollama", "ollama.txt"),
)


def snippets_for(job: Job, plan: TrainingPlan) -> list[tuple[str, str, str]]:
    """Id, title and text of each way to use the result."""
    entry = catalogue.find_model(job.model)
    values = {
        "base": entry.hub_id if entry else job.model,
        "is_4bit": plan.setup.method is Method.QLORA,
        "dtype": plan.setup.dtype,
        "name": job.suffix or "tuned",
        "rank": max(8, plan.setup.lora_rank or 8),
        "has_own_template": job.plan.chat_template is not None,
    }
    ways: Sequence[tuple[str, str, str]] = _OF_A_MODEL if plan.setup.method is Method.FULL else _OF_AN_ADAPTER
    if job.plan.chat_template:  # Ollama would take the base model's template, which is none or another
        ways = [way for way in ways if way[0] != "ollama"]
    return [(way, title, pages.render_text(f"snippets/{template}", **values)) for way, title, template in ways]
