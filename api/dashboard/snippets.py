"""How to use what a job made, ready to copy."""

from core.jobs.models import Job
from planner import catalogue
from planner.plans import TrainingPlan
from planner.setup import Method

_PEFT = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16")
model = PeftModel.from_pretrained(base, "adapter")  # adapter.zip, unpacked
tokenizer = AutoTokenizer.from_pretrained("adapter")

messages = [{{"role": "user", "content": "Hello"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(answer[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
_TRANSFORMERS = """from transformers import pipeline

chat = pipeline("text-generation", model="model")  # model.zip, unpacked
print(chat([{"role": "user", "content": "Hello"}], max_new_tokens=200))"""
_VLLM = "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}=./adapter"
_OLLAMA = """# Modelfile
FROM {base}
ADAPTER ./adapter

# then
ollama create {name} -f Modelfile
ollama run {name}"""


def snippets_for(job: Job, plan: TrainingPlan) -> list[tuple[str, str, str]]:
    """Id, title and text of each way to use the result."""
    entry = catalogue.find_model(job.model)
    base, name = (entry.hub_id if entry else job.model), job.suffix or "tuned"
    if plan.setup.method is Method.FULL:
        return [
            ("transformers", "transformers", _TRANSFORMERS),
            ("vllm", "vLLM", f"vllm serve ./model --served-model-name {name}"),
        ]
    values = {"base": base, "name": name, "rank": max(8, plan.setup.lora_rank or 8)}
    return [
        ("peft", "PEFT", _PEFT.format(**values)),
        ("vllm", "vLLM", _VLLM.format(**values)),
        ("ollama", "Ollama", _OLLAMA.format(**values)),
    ]
