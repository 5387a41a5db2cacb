"""What a job's page says about using its result runs as pasted, without the hub."""

import os
import subprocess
import sys
from pathlib import Path

from openai.types.fine_tuning import FineTuningJob

from tests.e2e.dashboard.visitor import Visitor
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service


def test_an_adapter_answers_as_the_page_says(
    service: Service, visitor: Visitor, finished: FineTuningJob, tmp_path: Path
) -> None:
    use = run_as_pasted(service, visitor, finished.id, "adapter.zip", "peft", tmp_path)
    assert 'PeftModel.from_pretrained(base, "adapter")' in use
    assert "quantization" not in use, "its base was whole"


def test_an_adapter_of_a_4_bit_base_answers_on_the_base_that_it_was_measured_on(
    service: Service, visitor: Visitor, tmp_path: Path
) -> None:
    job = service.create_job(chat_rows(), hyperparameters={"n_epochs": 1}, adapter={"method": "qlora"})
    service.wait(job.id, "succeeded")
    use = run_as_pasted(service, visitor, job.id, "adapter.zip", "peft", tmp_path)
    assert "BitsAndBytesConfig(" in use
    assert "quantization_config=quantization" in use
    assert "16-bit base" in visitor.page.locator("#snippet-vllm").inner_text()


def test_a_whole_model_answers_as_the_page_says(service: Service, visitor: Visitor, tmp_path: Path) -> None:
    job = service.create_job(chat_rows(), hyperparameters={"n_epochs": 1}, adapter={"method": "full"})
    service.wait(job.id, "succeeded")
    assert "Peft" not in run_as_pasted(service, visitor, job.id, "model.zip", "transformers", tmp_path)


def run_as_pasted(service: Service, visitor: Visitor, job: str, archive: str, way: str, directory: Path) -> str:
    """Download, unpack and run, in an empty folder; what was run."""
    page = visitor.open(f"/jobs/{job}")
    with service.http as http:
        answer = http.get(f"/fine_tuning/jobs/{job}/artifacts/{archive}", follow_redirects=True)
    (directory / archive).write_bytes(answer.raise_for_status().content)
    unpack, use = (page.locator(f"#snippet-{one}").inner_text() for one in ("unpack", way))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for command in (["sh", "-c", unpack], [sys.executable, "-c", use]):
        ended = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip()
    return use
