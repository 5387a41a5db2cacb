"""What the demo shows: the plan, the job as it runs, and answers before and after."""

import json
import logging
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli.plan_view import AlternativeView, PlanView, batch_line, method_line
from planner.devices import read_cpu
from planner.precision import dtype_on
from planner.wording import counted

ANSWER_TOKENS = 96
SHOWN_CHARACTERS = 320
RECONNECT_SECONDS = 2.0
RECONNECTS = 15


def plan_view(plan: dict[str, Any]) -> PlanView:
    """A plan of the API as something to show."""
    adapter, data, memory, quote, device = (plan[name] for name in ("adapter", "data", "memory", "quote", "device"))
    epochs = plan["hyperparameters"]["n_epochs"]
    return PlanView(
        model=plan["model"],
        method=method_line(adapter["method"], adapter["r"], adapter["lora_alpha"]),
        batch=batch_line(
            plan["per_device_train_batch_size"],
            plan["gradient_accumulation_steps"],
            checkpointing=plan["gradient_checkpointing"],
        ),
        data=f"{data['examples']:,} examples, {data['tokens']:,} tokens, {data['trained_tokens']:,} trained",
        training=f"{counted(epochs, 'epoch')}, {counted(plan['total_steps'], 'step')}, "
        f"learning rate {plan['learning_rate']:g}",
        device=device["name"],
        predicted_bytes=memory["device_bytes"],
        bound_bytes=memory["bound_bytes"],
        free_bytes=device["free_bytes"],
        terms=memory["breakdown"],
        seconds=quote["predicted_seconds"],
        tokens_per_second=plan["tokens_per_second"],
        credits=quote["credits"],
        rate=quote["credits_per_hour"],
        reasons=plan["reasons"],
        alternatives=[
            AlternativeView(
                label=method_line(other["method"], other["r"]),
                fits=other["fits"],
                required_bytes=other["required_bytes"],
                seconds=other["seconds"],
                credits=other["credits"],
                reason=other["reason"],
            )
            for other in plan["alternatives"]
            if not other["chosen"]
        ],
    )


def follow_job(console: Console, http: httpx.Client, job_id: str) -> None:
    """Show a job's events until it is finished: sentences above, the numbers of the last step in a progress bar."""
    columns = (
        SpinnerColumn(),
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=30),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=None, loss="–", speed="–")
        said: set[str] = set()
        for event in stream_events(http, job_id):
            data = event["data"] or {}
            if data.get("valid_loss") is not None:
                sentence = f"After step {data['step']}: validation loss {data['valid_loss']:.3f}"
            elif event["type"] == "metrics":
                numbers = {"loss": f"{data['train_loss']:.3f}", "speed": f"{data['tokens_per_second']:,.0f}"}
                progress.update(task, completed=data["step"], total=data["total_steps"], **numbers)
                continue
            else:
                sentence = event["message"]
            if sentence not in said:  # phases alternate while it trains
                progress.console.print(f"[dim]{sentence}[/]", soft_wrap=True)
                said.add(sentence)


def stream_events(http: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """The job's events as they happen, across broken connections, until the job is finished.

    Raises httpx.TransportError where the service stays away.
    """
    last_id: str | None = None
    failures = 0
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            url = f"/fine_tuning/jobs/{job_id}/events"
            with http.stream("GET", url, params={"stream": "true"}, headers=headers) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    failures = 0
                    field, _, value = line.partition(": ")
                    if field == "data" and value == "[DONE]":
                        return
                    if field == "data":
                        event = json.loads(value)
                        last_id = event["id"]
                        yield event
        except httpx.TransportError:
            failures += 1
            if failures > RECONNECTS:
                raise
        time.sleep(RECONNECT_SECONDS)


def compare_answers(console: Console, base_model: Path, adapter: Path, prompts: Sequence[str]) -> Table:
    """Answers of the base model and of the same model with the adapter, side by side."""
    with console.status("Loading the base model and the adapter with plain PeftModel.from_pretrained"):
        before, after = _answers(base_model, adapter, prompts)
    table = Table("Prompt", "Before", "After", show_lines=True, expand=True)
    for prompt, old, new in zip(prompts, before, after, strict=True):
        table.add_row(prompt, f"[dim]{_shown(old)}[/]", f"[green]{_shown(new)}[/]")
    return table


def _answers(base_model: Path, adapter: Path, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it talks of kernels that this model has no use for
    warnings.simplefilter("ignore", FutureWarning)  # among the libraries themselves
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(adapter, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=dtype_on(read_cpu()))
    model = PeftModel.from_pretrained(base, adapter).eval()
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )

    def answer() -> list[str]:
        tokens = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)  # [prompt, token]
        return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    with torch.inference_mode():
        with model.disable_adapter():
            before = answer()
        return before, answer()


def _shown(answer: str) -> str:
    """An answer, shortened where it goes on and on, that rich does not read as markup."""
    return textwrap.shorten(answer, SHOWN_CHARACTERS, placeholder=" …").replace("[", "\\[")
