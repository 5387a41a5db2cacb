"""What a finished run publishes: the adapter or the model, and everything a person needs to use and judge it.

Nothing in the archive depends on the clock, the machine or the order of a set: equal runs give equal bytes.
"""

import csv
import io
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.objectives import SPECS, Metric
from planner.setup import Method
from worker.protocol import RunRequest
from worker.training.export.answers import compared_answers
from worker.training.export.portable import copy_tokenizer, save_adapter, written_json
from worker.training.export.sampling import Answer, Prompt
from worker.training.metrics import MetricsRow
from worker.training.model.loading import LoadedModel

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold


@dataclass(frozen=True)
class Exported:
    """Where the export lies: the directory that loads, and each file to publish by its artifact name."""

    directory: Path
    files: Mapping[str, Path]


def export(
    loaded: LoadedModel,
    request: RunRequest,
    rows: Sequence[MetricsRow],
    prompts: Sequence[Prompt],
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> Exported:
    """Write everything but card and archive under `export/` of the run directory, replacing an unfinished one.

    Raises OSError.
    """
    root = Path(request.run_directory) / "export"
    shutil.rmtree(root, ignore_errors=True)
    is_full = request.setup.method is Method.FULL
    directory = root / ("model" if is_full else "adapter")
    directory.mkdir(parents=True)
    if is_full:
        _save_model(loaded, directory)
    else:
        save_adapter(loaded, request, directory)
    copy_tokenizer(request, directory)
    metrics, samples, plan = directory / "metrics.csv", directory / "samples.json", directory / "plan.json"
    metrics.write_text(metrics_csv(SPECS[request.setup.objective].metrics, rows), encoding="utf-8")
    samples.write_text(written_json(_samples(prompts, before, after)[: request.sample_count]), encoding="utf-8")
    plan.write_text(written_json(request.plan), encoding="utf-8")
    compared = directory / "exact_match.json"
    if request.exact_match is not None:
        compared.write_text(
            written_json(compared_answers(request.exact_match, prompts, before, after)), encoding="utf-8"
        )
    archive = root / f"{directory.name}.zip"
    files = {archive.name: archive, metrics.name: metrics, samples.name: samples, plan.name: plan}
    return Exported(directory, files if request.exact_match is None else {**files, compared.name: compared})


def pack(exported: Exported, card: str) -> None:
    """Add the model card, which says what the proof has found, and put everything into the archive. Raises OSError."""
    (exported.directory / "README.md").write_text(card, encoding="utf-8")
    for file in exported.directory.iterdir():
        file.chmod(0o644)  # safetensors makes its files private
    _zip(exported.directory, exported.directory.with_suffix(".zip"))


def metrics_csv(metrics: Sequence[Metric], rows: Sequence[MetricsRow]) -> str:
    """The rows as CSV: the objective's metrics and the learning rate; what was not measured at a step is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *(metric.csv_name for metric in metrics), "learning_rate"])
    for row in rows:
        values = (*(row.metrics.get(metric.name) for metric in metrics), row.learning_rate)
        writer.writerow([row.step, *("" if value is None else repr(value) for value in values)])
    return text.getvalue()


def _save_model(loaded: LoadedModel, directory: Path) -> None:
    loaded.causal_model.config.use_cache = True
    loaded.causal_model.save_pretrained(directory)


def _samples(prompts: Sequence[Prompt], before: Sequence[Answer], after: Sequence[Answer]) -> list[dict[str, object]]:
    return [
        {
            "row": prompt.row,
            "prompt": prompt.text,
            "reference": prompt.reference,
            "before": {"text": first.text, "tokens": first.tokens, "stopped": first.stopped},
            "after": {"text": last.text, "tokens": last.tokens, "stopped": last.stopped},
        }
        for prompt, first, last in zip(prompts, before, after, strict=True)
    ]


def _zip(directory: Path, target: Path) -> None:
    unfinished = target.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w") as archive:
        for path in sorted(directory.iterdir()):
            entry = zipfile.ZipInfo(path.name, _ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            # Weights are noise to a compressor.
            entry.compress_type = zipfile.ZIP_STORED if path.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    os.replace(unfinished, target)
