"""A plan as people read it in a terminal: what would run, whether it fits, what it costs, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from planner.wording import counted, duration, gib

BAR_CELLS = 46
TERMS_SHOWN = 6


@dataclass(frozen=True)
class AlternativeView:
    """A run that was considered and not chosen."""

    label: str
    fits: bool
    required_bytes: int
    seconds: float
    credits: int
    reason: str


@dataclass(frozen=True)
class PlanView:
    """What is shown of a plan. Memory in bytes, time in seconds, price in credits."""

    model: str
    method: str
    batch: str
    data: str
    training: str
    device: str
    predicted_bytes: int
    bound_bytes: int
    free_bytes: int
    terms: Mapping[str, int]
    seconds: float
    tokens_per_second: float
    credits: int
    rate: int
    reasons: Sequence[str]
    alternatives: Sequence[AlternativeView]


def show_plan(plan: PlanView) -> RenderableType:
    """The plan as something rich prints."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for label, value in (
        ("Method", Text(plan.method, style="bold cyan")),
        ("Batch", plan.batch),
        ("Data", plan.data),
        ("Training", plan.training),
        ("Device", plan.device),
        ("Memory", _memory_bar(plan)),
        ("", _largest_terms(plan.terms)),
        ("Time", f"{duration(plan.seconds)} at {plan.tokens_per_second:,.0f} tokens/s"),
        (
            "Price",
            Text(f"at most {plan.credits:,} credits", style="bold green").append(f" ({plan.rate:,} an hour)", "dim"),
        ),
    ):
        facts.add_row(label, value)
    parts: list[RenderableType] = [facts, Text(), Text("Why", style="bold"), _list(plan.reasons)]
    if plan.alternatives:
        parts += [Text(), Text("Considered and not chosen", style="bold"), _alternatives(plan.alternatives)]
    return Panel(Group(*parts), title=f"Plan for {plan.model}", title_align="left", border_style="cyan", padding=(1, 2))


def method_line(method: str, rank: int | None, alpha: int | None = None) -> str:
    """The method with its rank, e.g. `LoRA, rank 16, alpha 32`."""
    name = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA (4-bit base)"}.get(method, method)
    if rank is None:
        return name
    return f"{name}, rank {rank}" + ("" if alpha is None else f", alpha {alpha}")


def batch_line(micro_batch: int, accumulation: int, *, checkpointing: bool) -> str:
    """The batch, e.g. `4 rows x 2 accumulated = 8 per step, gradient checkpointing`."""
    rows = counted(micro_batch, "row")
    line = (
        f"{rows} per step" if accumulation == 1 else f"{rows} × {accumulation} = {micro_batch * accumulation} per step"
    )
    return line + (", gradient checkpointing" if checkpointing else "")


def _memory_bar(plan: PlanView) -> Text:
    """Predicted use and its bound, to the scale of what is free."""
    whole = max(plan.free_bytes, plan.predicted_bytes + plan.bound_bytes, 1)
    predicted = max(1, round(BAR_CELLS * plan.predicted_bytes / whole))
    bound = max(1, round(BAR_CELLS * plan.bound_bytes / whole))
    fits = plan.predicted_bytes + plan.bound_bytes <= plan.free_bytes
    bar = Text("█" * predicted, style="cyan" if fits else "red").append("▒" * bound, style="yellow")
    bar.append("░" * max(0, BAR_CELLS - predicted - bound), style="dim")
    bar.append(f"\n{gib(plan.predicted_bytes)} predicted", style="cyan").append(" + ")
    bar.append(f"{gib(plan.bound_bytes)} margin", style="yellow").append(f" of {gib(plan.free_bytes)} free")
    return bar


def _largest_terms(terms: Mapping[str, int]) -> Text:
    """The largest terms of the prediction; the phases among them take turns, so they do not add up to it."""
    largest = sorted(((size, name) for name, size in terms.items() if size > 0), reverse=True)[:TERMS_SHOWN]
    words = (f"{name.removesuffix('_bytes').replace('_', ' ')} {gib(size)}" for size, name in largest)
    return Text(", ".join(words), style="dim")


def _list(sentences: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 1))
    for sentence in sentences:
        table.add_row("•", Text(sentence))
    return table


def _alternatives(alternatives: Sequence[AlternativeView]) -> Table:
    """One line for each method and rank: its cheapest setting that fits, else the one that needs the least."""
    best: dict[str, AlternativeView] = {}
    for alternative in sorted(alternatives, key=_preference):
        best.setdefault(alternative.label, alternative)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column()
    for alternative in best.values():
        memory, price = gib(alternative.required_bytes), f"{alternative.credits:,} credits"
        reason = Text(alternative.reason, style="dim")
        table.add_row(alternative.label, memory, duration(alternative.seconds), price, reason)
    return table


def _preference(alternative: AlternativeView) -> tuple[bool, int]:
    return (not alternative.fits, alternative.credits if alternative.fits else alternative.required_bytes)
