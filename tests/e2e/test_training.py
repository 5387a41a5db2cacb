"""Every method through the real service: from an upload to an adapter that plain PEFT loads."""

import io
import zipfile
from pathlib import Path

import orjson
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.rows import chat_rows
from tests.e2e.service import Service


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_trained_proven_and_downloaded(
    service: Service, models_dir: Path, tmp_path: Path, method: str
) -> None:
    job = service.create_job(chat_rows(), hyperparameters={"n_epochs": 6}, adapter={"method": method})
    done = service.wait(job.id, "succeeded")

    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith("ft:tiny:")
    assert done.trained_tokens is not None
    assert done.trained_tokens > 0
    with service.http as http:
        wire = http.get(f"/fine_tuning/jobs/{job.id}").json()
        names = [artifact["name"] for artifact in http.get(f"/fine_tuning/jobs/{job.id}/artifacts").json()["data"]]
        archive = http.get(f"/fine_tuning/jobs/{job.id}/artifacts/adapter.zip", follow_redirects=True).content
        balance = http.get("/credits").json()
    assert names == ["adapter.zip", "metrics.csv", "samples.json", "plan.json"]
    assert 0 < wire["charged"] <= wire["quote"]["credits"]
    assert wire["memory"]["measured"]["peak_allocated_bytes"] > 0
    assert balance["held"] == 0

    events = [event.message for event in service.client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert events[-1].startswith("Created fine-tuning job")
    assert events[0] == "The job has successfully completed"
    metrics = [event.data for event in service.client.fine_tuning.jobs.list_events(job.id, limit=100) if event.data]
    losses = [row["train_loss"] for row in reversed(metrics) if row.get("valid_loss") is None]
    assert losses[-1] < losses[0] - 0.5

    csv = service.client.files.content(done.result_files[0]).text
    assert csv.splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,learning_rate"

    with zipfile.ZipFile(io.BytesIO(archive)) as unpacked:
        unpacked.extractall(tmp_path)
    config = orjson.loads((tmp_path / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "tiny"
    base = AutoModelForCausalLM.from_pretrained(models_dir / "tiny", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("number", return_tensors="pt").input_ids
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, tmp_path)(ids).logits
    assert not torch.allclose(before, after)


def test_full_fine_tuning_publishes_the_model(service: Service, tmp_path: Path) -> None:
    job = service.create_job(chat_rows(), adapter={"method": "full"})
    service.wait(job.id, "succeeded")
    with service.http as http:
        archive = http.get(f"/fine_tuning/jobs/{job.id}/artifacts/model.zip", follow_redirects=True).content
    with zipfile.ZipFile(io.BytesIO(archive)) as unpacked:
        unpacked.extractall(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_checkpoints_are_listed_while_and_after_training(service: Service) -> None:
    job = service.create_job(chat_rows(), hyperparameters={"n_epochs": 3})
    service.wait(job.id, "succeeded")
    checkpoints = service.client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints
    assert checkpoints[0].step_number >= checkpoints[-1].step_number
    assert checkpoints[0].metrics.step == checkpoints[0].step_number
