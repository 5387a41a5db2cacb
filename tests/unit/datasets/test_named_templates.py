"""Models without a chat template get one that they can read and stop at, and it is published with what they become."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from core.datasets.detection import detect_format
from core.datasets.encoding import load_encoder, resolve_template
from core.datasets.examples import DataFormat, DataKind
from core.datasets.formats import RowError, to_example
from core.datasets.named_templates import NAMED_TEMPLATES, publish_template
from core.errors import InvalidRequestError
from tests.unit.datasets.model_shapes import COMMAND_R, LLAMA3
from tests.unit.datasets.template_shapes import CHATML, GEMMA, MISTRAL, WORDS, Shape

MakeDirectory = Callable[..., Path]
CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
COMPLETION = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": "prompt", "completion": "completion"})
ALPACA = DataFormat("alpaca", DataKind.COMPLETION, {"instruction": "instruction", "output": "output"})
TEXT = DataFormat("text", DataKind.TEXT, {"text": "text"})
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How do I return a lantern?"},
    {"role": "assistant", "content": "Send it back."},
    {"role": "user", "content": "And then? 灯塔"},
    {"role": "assistant", "content": " Wait…\n"},
]


@pytest.mark.parametrize(
    ("shape", "name", "end"),
    [
        (CHATML, "chatml", "<|im_end|>"),
        (LLAMA3.shape, "llama3", "<|eot_id|>"),
        (MISTRAL, "zephyr", "</s>"),
        (GEMMA, "zephyr", "<eos>"),
        (COMMAND_R.shape, "zephyr", "<|END_OF_TURN_TOKEN|>"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_turns_of_a_model_without_template_are_rendered_as_it_can_read_them(
    model_directory: MakeDirectory, shape: Shape, name: str, end: str
) -> None:
    directory = model_directory(shape, None)
    assert resolve_template(directory, CHAT, None) == name
    encoder = load_encoder(directory, name)
    encoded = encoder.encode(to_example({"messages": MESSAGES}, 1, CHAT))
    runs, before = [], False
    for token, trained in zip(encoded.input_ids, encoded.completion_mask, strict=True):
        if trained:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = trained
    assert [encoder.decode(run, skip_special_tokens=False) for run in runs] == [
        f"Send it back.{end}",
        f"{'' if shape.sentencepiece else ' '}Wait…\n{end}",  # whose decoder drops a blank at the start
    ]
    publish_template(name, directory)
    published = AutoTokenizer.from_pretrained(directory)
    assert list(encoded.input_ids) == published.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    again = load_encoder(directory)
    assert again.encode(to_example({"messages": MESSAGES}, 1, CHAT)) == encoded
    prompt = published.apply_chat_template(MESSAGES[:4], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert encoded.input_ids[: len(prompt)] == tuple(prompt)
    assert encoded.completion_mask[len(prompt) - 1 : len(prompt) + 1] == (False, True)


def test_a_models_own_template_comes_first_and_a_name_overrides_it(model_directory: MakeDirectory) -> None:
    directory = model_directory(WORDS)
    assert resolve_template(directory, CHAT, None) is None
    assert resolve_template(directory, CHAT, "zephyr") == "zephyr"
    rendered = load_encoder(directory, "zephyr").segments(to_example({"messages": MESSAGES[1:3]}, 1, CHAT))
    assert rendered[0] == ("<|user|>\nHow do I return a lantern?</s>\n<|assistant|>\n", False)
    publish_template("zephyr", directory)
    assert AutoTokenizer.from_pretrained(directory).chat_template == NAMED_TEMPLATES["zephyr"].source


def test_a_template_in_the_tokenizers_configuration_gives_way(model_directory: MakeDirectory) -> None:
    directory = model_directory(WORDS, None)
    config = directory / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"chat_template": "{{ 1 }}", ', 1))
    publish_template("zephyr", directory)
    assert AutoTokenizer.from_pretrained(directory).chat_template == NAMED_TEMPLATES["zephyr"].source
    assert "chat_template" not in config.read_text()


@pytest.mark.parametrize(
    ("shape", "name", "says"),
    [
        (MISTRAL, "chatml", "no <|im_start|>, <|im_end|>"),
        (MISTRAL, "llama3", "no <|start_header_id|>"),
        (replace(CHATML, name="base", eos="<|endoftext|>"), "chatml", "servers would not stop"),
    ],
    ids=["no tokens", "no headers", "does not stop"],
)
def test_a_template_that_the_model_cannot_read_or_stop_at_is_refused(
    model_directory: MakeDirectory, shape: Shape, name: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve_template(model_directory(shape, None), CHAT, name)
    assert (caught.value.code, caught.value.param) == ("chat_template_not_usable", "chat_template")
    assert says in caught.value.message
    assert "Use zephyr." in caught.value.message


def test_prompts_with_completions_and_texts_stay_as_they_are_written(model_directory: MakeDirectory) -> None:
    directory = model_directory(MISTRAL, None)
    assert resolve_template(directory, COMPLETION, None) is None
    assert resolve_template(directory, TEXT, None) is None
    assert resolve_template(directory, ALPACA, None) == "zephyr"  # a question and an answer run into each other else
    assert resolve_template(directory, COMPLETION, "zephyr") == "zephyr"
    turns = {"prompt": MESSAGES[:2], "completion": MESSAGES[2:3]}
    conversational = detect_format([turns, turns])
    assert conversational.kind is DataKind.CHAT
    assert resolve_template(directory, conversational, None) == "zephyr"
    assert [m.trained for m in to_example(turns, 1, conversational).messages] == [False, False, True]


def test_tools_need_a_template_that_knows_them(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(MISTRAL, None), "zephyr")
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    row = {"messages": [MESSAGES[1], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    with pytest.raises(RowError, match="knows no tools"):
        encoder.encode(to_example(row, 3, CHAT))
