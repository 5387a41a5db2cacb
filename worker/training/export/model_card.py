"""The README.md that goes with an adapter or model."""

from collections.abc import Sequence

from core.jobs.evaluation import Evaluation
from planner.memory.adapters import FACTORISED
from planner.objectives import SPECS, VALID_LOSS, Metric
from planner.setup import Method, TrainingSetup
from worker.protocol import RunRequest
from worker.training.metrics import MetricsRow


def model_card(request: RunRequest, rows: Sequence[MetricsRow], published: int, evaluation: Evaluation | None) -> str:
    """A model card in the hub's format: metadata, what was trained how, results of step `published`, how to load it."""
    is_adapter = request.setup.method is not Method.FULL
    name = request.suffix or request.job_id
    parts = [_metadata(request, is_adapter), f"# {name}", _introduction(request), _table(request, published)]
    results = _results(
        SPECS[request.setup.objective].held_out, [row for row in rows if row.step <= published], evaluation
    )
    if results:
        parts.append(results)
    parts.append(_usage(request, is_adapter))
    return "\n\n".join(parts) + "\n"


def checkpoint_card(request: RunRequest, row: MetricsRow, total_steps: int) -> str:
    """The README.md of a checkpoint: which step it is, how to load it, and how to go on from it."""
    is_adapter = request.setup.method is not Method.FULL
    loss = f" Its loss on the held-out rows was {row.valid_loss:.4f}." if row.valid_loss is not None else ""
    rate = f" The rate of its step was {row.learning_rate:g}." if row.learning_rate is not None else ""
    again = (
        'model = PeftModel.from_pretrained(base, "path/to/this/directory", is_trainable=True)'
        if is_adapter
        else 'model = AutoModelForCausalLM.from_pretrained("path/to/this/directory", dtype="bfloat16")'
    )
    parts = [
        _metadata(request, is_adapter),
        f"# {request.suffix or request.job_id}, step {row.step:,} of {total_steps:,}",
        f"{_introduction(request)}{loss}",
        _usage(request, is_adapter),
        f"## Go on training\n\n```python\n{again}\n```",
        f"A paused or interrupted job goes on from its newest checkpoint by itself.{rate} `optimizer.pt` holds the "
        f"states of {request.setup.optimizer} in the order of the trained parameters (`torch.load`), `state.json` "
        "every step's numbers so far, and `manifest.json` the SHA-256 of each file.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(request: RunRequest, is_adapter: bool) -> str:
    tags = ["tunewright", str(request.setup.method)] + (["lora"] if is_adapter else [])
    lines = ["---", f"base_model: {request.base_model}", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    lines += ["pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in dict.fromkeys(tags)), "---"]
    return "\n".join(lines)


def _introduction(request: RunRequest) -> str:
    revision = f" at revision `{request.base_model_revision}`" if request.base_model_revision else ""
    kinds = {
        Method.FULL: "All weights of",
        Method.LORA: "A LoRA adapter for",
        Method.QLORA: "A LoRA adapter, trained on a 4-bit (NF4) base, for",
    }
    return f"{kinds[request.setup.method]} `{request.base_model}`{revision}, fine-tuned with Tunewright."


def _table(request: RunRequest, published: int) -> str:
    setup, hyperparameters = request.setup, request.hyperparameters
    entries: list[tuple[str, object]] = [("method", setup.method)]
    if setup.method is not Method.FULL:
        entries += [("rank", setup.lora_rank), ("alpha", setup.lora_alpha), ("dropout", setup.lora_dropout)]
        entries += _variants(setup)
    entries += [
        ("epochs", hyperparameters.n_epochs),
        ("published step", published),
        ("learning rate", f"{hyperparameters.learning_rate:g}, {hyperparameters.lr_scheduler_type}"),
        ("effective batch size", setup.effective_batch_size),
        ("maximum length", f"{setup.max_length} tokens"),
        ("optimizer", setup.optimizer),
        ("chat template", request.chat_template or "the base model's own, where it has one"),
        ("seed", request.seed),
    ]
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in entries)])


def _variants(setup: TrainingSetup) -> list[tuple[str, object]]:
    entries: list[tuple[str, object]] = []
    if setup.use_rslora:
        entries.append(("scaling", "alpha / sqrt(rank), rsLoRA"))
    if setup.use_dora:
        entries.append(("magnitudes", "trained apart, DoRA"))
    if setup.init_lora_weights in FACTORISED:
        start = f"{setup.init_lora_weights}; published as an ordinary adapter of rank {2 * (setup.lora_rank or 0)}"
        entries.append(("start", start))
    if setup.modules_to_save:
        entries.append(("trained whole", ", ".join(setup.modules_to_save)))
    return entries


def _results(metrics: Sequence[Metric], rows: Sequence[MetricsRow], evaluation: Evaluation | None) -> str:
    evaluated = [row for row in rows if row.valid_loss is not None]
    if len(evaluated) < 2:
        return ""
    lines = ["| held-out examples | before | after |", "|---|---|---|"]
    first, last = evaluated[0], evaluated[-1]
    where = ", on the 4-bit base" if evaluation is not None and evaluation.is_on_4bit_base else ""
    for metric in metrics:
        label = metric.title.lower() + (where if metric.name == VALID_LOSS else "")
        values = " | ".join(metric.shown(row.metrics[metric.name]) for row in (first, last))
        lines.append(f"| {label} | {values} |")
    if evaluation is not None and evaluation.is_on_4bit_base:
        elsewhere = evaluation.valid_loss_on_16bit_base
        measured = "not measured: it does not fit there" if elsewhere is None else f"{elsewhere:.4f}"
        lines.append(f"| loss, on the 16-bit base | | {measured} |")
    lines += [f"| {name} | {before:.1%} | {after:.1%} |" for name, before, after in _shares(evaluation)]
    lines.append("\n`samples.json` holds answers to the same held-out prompts before and after.")
    return "\n".join(lines)


def _shares(evaluation: Evaluation | None) -> list[tuple[str, float, float]]:
    if evaluation is None:
        return []
    before, after = evaluation.before, evaluation.after
    shares = [
        (f"answers that stop by themselves, of {evaluation.answers}", before.stopped_rate, after.stopped_rate),
        (f"exact match, of {evaluation.answers}", before.exact_match, after.exact_match),
    ]
    return [(name, first, last) for name, first, last in shares if first is not None and last is not None]


def _usage(request: RunRequest, is_adapter: bool) -> str:
    if request.setup.method is Method.QLORA:
        code = f"""import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

# The base that the adapter was trained and measured on. Without quantization_config it is another, with another loss.
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{request.setup.dtype},
)
base = AutoModelForCausalLM.from_pretrained(
    "{request.base_model}", dtype="{request.setup.dtype}", quantization_config=quantization
)
model = PeftModel.from_pretrained(base, "path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")"""
    elif is_adapter:
        code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{request.base_model}", dtype="{request.setup.dtype}")
model = PeftModel.from_pretrained(base, "path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")"""
    else:
        code = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")"""
    return f"## Use\n\n```python\n{code}\n```"
