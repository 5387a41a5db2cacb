"""Convert a GGUF file into what everything else loads: bfloat16 safetensors, tokenizer, config, generation config.

    python -m worker.training.model.gguf SOURCE.gguf TARGET_DIRECTORY

The target appears whole or not at all, and its files are readable by everyone.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from core.errors import InvalidModelError
from worker.training.libraries import quiet


def convert(source: Path, target: Path) -> None:
    """Write the model of `source` to the directory `target`, replacing nothing: a target that exists is kept.

    Raises InvalidModelError where the file has no tokenizer with a chat template and an end-of-turn token.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(source, unfinished)
        unfinished.chmod(0o755)
        for file in unfinished.iterdir():
            file.chmod(0o644)
        _move(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # nothing is left of it where it was moved


def _move(finished: Path, target: Path) -> None:
    try:
        os.rename(finished, target)
    except OSError:
        if not (target / "config.json").is_file():
            raise  # else another process converted the same model meanwhile


def _write(source: Path, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if not tokenizer.is_fast or tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise InvalidModelError(f"{source.name} has no fast tokenizer with a chat template and an end-of-turn token.")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # GGUF carries a display name and no clean-up; what remains must not name this machine's paths.
    model.config.name_or_path = target_name = source.stem
    tokenizer.name_or_path = target_name
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.training.model.gguf", description="Convert a GGUF file.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        convert(options.source, options.target)
    except InvalidModelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
