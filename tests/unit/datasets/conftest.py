"""Tokenizers trained here, and model directories as transformers saves them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import orjson
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.unit.datasets.template_shapes import Shape

CORPUS = (
    "The keeper lights the lamp at dusk, and the lamp turns all night.",
    "How do I return a lantern? Send it back within thirty days, please.",
    "You are a helpful assistant. Answer in one short sentence.",
    "Ça coûte 42 €, déjà vu; 灯塔 ランプ 😀 naïve façade.",
    "def light(n): return [i * 2 for i in range(n)]  # twice\n\n\tdone",
) * 40

LINES_TOGETHER = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(special: tuple[str, ...], bos: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if bos:  # as Llama 3: line breaks before a word stay together
        split = pre_tokenizers.Split(Regex(LINES_TOGETHER), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    else:  # as GPT-2
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    steps = [processors.ByteLevel(trim_offsets=True)]
    if bos:
        steps.append(
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        )
    tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer


def _sentencepiece(special: tuple[str, ...], bos: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    every_byte = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *special, *every_byte], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    data = orjson.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(orjson.dumps(data).decode())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


@cache
def _trained(special: tuple[str, ...], bos: str | None, sentencepiece: bool) -> str:
    return (_sentencepiece if sentencepiece else _byte_level)(special, bos).to_str()


def write_model_directory(directory: Path, shape: Shape, *, template: str | None) -> Path:
    """The tokenizer files of a model with this shape."""
    directory.mkdir(parents=True, exist_ok=True)
    text = _trained(shape.special, shape.bos, shape.sentencepiece)
    (directory / "tokenizer.json").write_text(text)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": shape.eos, "model_max_length": 4096}
    if shape.bos:
        config["bos_token"] = shape.bos
    (directory / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    if shape.stop_ids_in_generation_config:
        tokenizer = Tokenizer.from_str(text)
        ids = [tokenizer.token_to_id(shape.eos), tokenizer.token_to_id(shape.end_of_turn)]
        (directory / "generation_config.json").write_bytes(orjson.dumps({"eos_token_id": ids}))
    return directory


@pytest.fixture
def model_directory(tmp_path: Path) -> Callable[..., Path]:
    """`model_directory(shape)`: a directory with tokenizer files; `template=None` leaves the chat template out."""

    def make(shape: Shape, template: str | None = "") -> Path:
        return write_model_directory(
            tmp_path / shape.name, shape, template=shape.source if template == "" else template
        )

    return make
