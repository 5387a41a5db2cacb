"""What the results say, as one page of tables (report.md) and one document (report.json)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from bench.gpu_check.session import Session
from planner.devices import Device
from planner.model.spec import ModelSpec
from planner.setup import Method
from planner.throughput import device_rates

GIB = 1 << 30
SAME = 0.02  # relative; losses and gradient norms of one workload's variants differ by bf16's rounding alone
AS_PLANNED = "as planned"
PROVEN, AS_IT_SHOULD = "exported and proven", "failed as it should"
Row = Mapping[str, Any]


def utilisation(spec: ModelSpec, method: Method, tokens_per_second: float, device: Device) -> float:
    """Model FLOPs utilisation: parameters x tokens per second, times 4 for an adapter on a frozen base (2 forward, 2
    for the gradients of inputs) or 6 for full fine-tuning (2 more for those of weights), over the device's data
    sheet. Parameters of a mixture are those that one token meets; attention and recomputation are not counted."""
    flops = (6 if method is Method.FULL else 4) * spec.active_parameters
    return flops * tokens_per_second / device_rates(device).flops


def write_report(session: Session) -> str:
    """Write both files; returns the page."""
    results = session.read()
    page = "\n\n".join(part for part in sections(results) if part) + "\n"
    (session.out / "report.md").write_text(page, encoding="utf-8")
    document = {"summary": summary(results), "results": results}
    (session.out / "report.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return page


def sections(results: Sequence[Row]) -> Iterable[str]:
    """The page's parts, in order."""
    yield f"# {device_name(results)}"
    found = summary(results)
    yield "\n".join(f"* {name.replace('_', ' ')}: {value}" for name, value in found.items() if value is not None)
    yield table("Jobs", [row for row in _of(results, "jobs") if "method" in row], _JOBS)
    yield table("Memory, GiB", [_with_error(row) for row in _of(results, "memory")], _MEMORY)
    yield table("Speed", compared(results), _SPEED)
    rates = [row for row in _of(results, "environment", "rates") if any(key in row for key, _ in _MEASURED)]
    yield table("Rates and context", rates, _RATES)
    yield table("Not measured, or failed", [row for row in results if "skipped" in row or "error" in row], _LOST)


def summary(results: Sequence[Row]) -> dict[str, Any]:
    """The figures that one wants first; None for those that were not measured."""
    errors = [abs(row["error_share"]) for row in map(_with_error, _of(results, "memory")) if "error_share" in row]
    covered = [row["covered"] for row in map(_with_error, _of(results, "memory")) if row.get("covered") is not None]
    jobs = [row for row in results if row["step"] == "jobs" and "skipped" not in row and "method" in row]
    ratios = [f"{row['workload']}: {row['against']:.2f}x" for row in compared(results) if row.get("against")]
    timed = [row for row in _of(results, "speed", "compiled") if row.get("mfu")]
    best = max(timed, key=lambda row: float(row["mfu"]), default=None)
    good = sum(row.get("ended") in (PROVEN, AS_IT_SHOULD) for row in jobs)
    return {
        "device": device_name(results),
        "jobs_that_ended_as_they_should": f"{good} of {len(jobs)}" if jobs else None,
        "memory_mean_error": f"{mean(errors):.1%}, worst {max(errors):.1%}" if errors else None,
        "memory_within_the_bound": f"{sum(covered)} of {len(covered)}" if covered else None,
        "best_utilisation": f"{best['mfu']:.1%}, {best['case']}" if best else None,
        "tokens_a_second_against_the_best_of_trl": "; ".join(ratios) or None,
        "cases_that_failed": sum("error" in row for row in results),
    }


def compared(results: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the speed table: ours by workload, each variant against what was planned; then the peers.

    `against` is what we planned over the best of TRL's settings on the workload.
    """
    ours = [_split(row) for row in _of(results, "speed", "compiled")]
    peers = [_split(row) for row in _of(results, "peers")]
    planned = {row["workload"]: row for row in ours if row["variant"] == AS_PLANNED}
    rows = []
    for row in ours:
        base = planned.get(row["workload"], {})
        row |= {"ratio": _ratio(row, base), "agrees": _agrees(row, base)}
        if row["variant"] == AS_PLANNED:
            rates = [peer["tokens_per_second"] for peer in peers
                     if peer["workload"] == row["workload"] and "tokens_per_second" in peer
                     and peer["variant"].startswith("trl")]  # fmt: skip
            row["against"] = row["tokens_per_second"] / max(rates) if rates and row.get("tokens_per_second") else None
        rows.append(row)
    rows += [row | {"ratio": _ratio(row, planned.get(row["workload"], {}))} for row in peers]
    return [row for row in rows if row.get("tokens_per_second")]


def device_name(results: Sequence[Row]) -> str:
    """Of the device that was measured."""
    for row in results:
        if devices := row.get("devices"):
            return str(devices[0]["name"])
    return "unknown device"


def table(title: str, rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> str:
    """A Markdown table; `columns` maps headings to keys and formats. Empty without rows."""
    if not rows:
        return ""
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [_cell(row.get(key), form) for key, form in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int | float):
        return format(value / GIB if form == "GiB" else value, ".2f" if form == "GiB" else form)
    return str(value).replace("|", "/").replace("\n", " ")[:160]


def _of(results: Sequence[Row], *steps: str) -> list[dict[str, Any]]:
    """What some steps measured."""
    return [dict(row) for row in results if row["step"] in steps and "skipped" not in row and "error" not in row]


def _with_error(row: dict[str, Any]) -> dict[str, Any]:
    if "measured_bytes" not in row:
        return row
    required = row["device_bytes"] + row["bound_bytes"]
    return row | {
        "error_share": row["predicted_bytes"] / row["measured_bytes"] - 1,
        "required_bytes": required,
        "covered": row["held_bytes"] <= required if "held_bytes" in row else None,
        "accelerate_error": row["accelerate_bytes"] / row["measured_bytes"] - 1,
    }


def _split(row: dict[str, Any]) -> dict[str, Any]:
    workload, _, variant = row["case"].partition(": ")
    return row | {"workload": workload, "variant": variant}


def _ratio(row: Row, base: Row) -> float | None:
    if not row.get("tokens_per_second") or not base.get("tokens_per_second"):
        return None
    return float(row["tokens_per_second"] / base["tokens_per_second"])


def _agrees(row: Row, base: Row) -> bool | None:
    """Whether a variant computes what was planned, and gives every parameter a gradient."""
    if "loss" not in row or "loss" not in base:
        return None
    close = all(abs(row[key] - base[key]) <= SAME * abs(base[key]) for key in ("loss", "grad_norm"))
    return close and row["without_gradient"] == 0


_JOBS = {
    "job": ("case", ""), "ended": ("ended", ""), "steps": ("steps", ""), "first loss": ("first_loss", ".3f"),
    "last loss": ("last_loss", ".3f"), "ms a step": ("step_ms", ".0f"), "planned, MiB": ("planned_mib", "d"),
    "measured": ("measured_mib", "d"), "planned allocated": ("planned_allocated_mib", "d"),
    "measured allocated": ("measured_allocated_mib", "d"), "said": ("said", ""),
}  # fmt: skip
_MEMORY = {
    "model": ("model", ""), "method": ("method", ""), "rows x length": ("shape", ""), "options": ("options", ""),
    "predicted": ("predicted_bytes", "GiB"), "measured": ("measured_bytes", "GiB"), "error": ("error_share", "+.1%"),
    "with bound": ("required_bytes", "GiB"), "held": ("held_bytes", "GiB"), "within": ("covered", ""),
    "accelerate's rule": ("accelerate_error", "+.0%"),
}  # fmt: skip
_SPEED = {
    "workload": ("workload", ""), "variant": ("variant", ""), "rows": ("rows", "d"),
    "tokens/s": ("tokens_per_second", ",d"), "MFU": ("mfu", ".1%"), "against planned": ("ratio", ".2f"),
    "agrees": ("agrees", ""), "peak, GiB": ("peak_gib", ".2f"), "ours / best TRL": ("against", ".2f"),
}  # fmt: skip
_RATES = {
    "case": ("case", ""), "ms": ("ms", ".3f"), "TFLOP/s": ("tflops", ".0f"), "GB/s": ("gigabytes_per_second", ".0f"),
    "peak, GiB": ("peak_gib", ".2f"), "context, MiB": ("context", "d"), "planned": ("planned_context", "d"),
    "workspaces": ("workspaces", "d"), "planned ": ("planned_workspaces", "d"), "problem": ("problem", ""),
}  # fmt: skip
_MEASURED = [column for column in _RATES.values() if column[0] != "case"]
_LOST = {"step": ("step", ""), "case": ("case", ""), "skipped": ("skipped", ""), "error": ("error", "")}
