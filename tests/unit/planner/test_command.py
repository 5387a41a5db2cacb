"""`python -m planner estimate`."""

import json
import subprocess
import sys

from planner.__main__ import answer_line, main

ROW = {
    "id": "row-1",
    "config": {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "setup": {
        "method": "lora",
        "quantization": None,
        "lora_rank": 8,
        "lora_target_modules": ["q_proj", "v_proj"],
        "adapter_dtype": "float32",
        "per_device_train_batch_size": 2,
        "max_length": 512,
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
        "loss": "eager",
        "optimizer": "adamw_torch",
        "dtype": "bfloat16",
        "stack": {"library": "transformers", "version": "4.48.1"},
    },
    "gpu": "A100-80GB",
}


def test_each_row_gets_its_totals_and_their_terms():
    answer = answer_line(json.dumps(ROW), 1)
    assert answer["id"] == "row-1"
    assert answer["peak_allocated_bytes"] > answer["static_allocated_bytes"] > 0
    assert answer["breakdown"]["base_weights_bytes"] > 0


def test_a_row_that_cannot_be_estimated_says_why_and_the_others_go_on(tmp_path, capsys):
    rows = [
        json.dumps(ROW),
        "{not json",
        json.dumps({**ROW, "config": {"model_type": "mamba"}}),
        json.dumps({**ROW, "setup": {**ROW["setup"], "method": "magic"}}),
        json.dumps({**ROW, "setup": {**ROW["setup"], "colour": "red"}}),
        json.dumps({**ROW, "gpu": "abacus"}),
        json.dumps([1]),
        json.dumps({"id": "no-setup"}),
        "",
        json.dumps({**ROW, "id": "last", "gpu": None}),
    ]
    batch = tmp_path / "batch.jsonl"
    batch.write_text("\n".join(rows))
    assert main(["estimate", "--batch", str(batch)]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("error" in answer) for answer in answers] == [False, *[True] * 7, False]
    assert "Line 2" in answers[1]["error"]
    assert "mamba" in answers[2]["error"]
    assert "magic" in answers[3]["error"]
    assert "colour" in answers[4]["error"]
    assert "abacus" in answers[5]["error"]


def test_the_module_runs_without_any_heavy_import(tmp_path):
    batch = tmp_path / "batch.jsonl"
    batch.write_text(json.dumps(ROW))
    code = (
        "import sys; from planner.__main__ import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'pynvml', 'pydantic', 'sqlalchemy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "estimate", "--batch", str(batch)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == "row-1"
