"""Every known GPU side by side: which of them hold a run, with what method, how fast and for how much."""

from dataclasses import replace

from rich.table import Table
from rich.text import Text

from cli.plan_view import method_line
from planner.devices import Device
from planner.errors import DoesNotFitError, UnusableDeviceError
from planner.policy import choice as policy
from planner.policy.candidates import Question
from planner.policy.choice import TrainingPlan
from planner.wording import duration, gib


def compare(model: str, question: Question) -> Table:
    """One line for each device of the question, the smallest first: its plan, or that nothing fits."""
    table = Table(title=f"{model}: {question.spec.parameters / 1e9:.1f}B parameters", title_justify="left")
    for name in ("GPU", "Free", "Method", "Needs", "Time", "Price"):
        table.add_column(name, justify="left" if name in ("GPU", "Method") else "right", no_wrap=True)
    for device in sorted(question.devices, key=lambda device: (device.free_bytes, device.name)):
        try:
            chosen = policy.plan(replace(question, devices=[device]))
        except DoesNotFitError:
            table.add_row(device.name, gib(device.free_bytes), Text("nothing fits", style="dim"), "", "", "")
        except UnusableDeviceError:
            table.add_row(device.name, gib(device.free_bytes), Text("needs bfloat16", style="dim"), "", "", "")
        else:
            table.add_row(*_cells(device, chosen))
    return table


def _cells(device: Device, chosen: TrainingPlan) -> tuple[str, ...]:
    return (
        device.name,
        gib(device.free_bytes),
        method_line(chosen.setup.method, chosen.setup.lora_rank),
        gib(chosen.memory.required_bytes),
        duration(chosen.speed.seconds),
        f"{chosen.credits:,} credits",
    )
