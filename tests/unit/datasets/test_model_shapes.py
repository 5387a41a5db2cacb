"""What is trained under the templates of well-known families: each answer with its end of turn, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from core.datasets.encoding import Encoder, load_encoder
from core.datasets.examples import DataFormat, DataKind, Example
from core.datasets.formats import RowError, to_example
from tests.unit.datasets.model_shapes import ARGUMENTS, CALL_ID, DEEPSEEK_R1, FAMILIES, QWEN3, TOOLS, Family

MakeDirectory = Callable[..., Path]
CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
ROW = 41
ANSWERS = ("Send it back.", "Ça coûte 42 €.\n\n  - déjà vu 😀\n\tdone", "Send it back.")
SYSTEM = {"role": "system", "content": "You answer for a lamp maker."}
EVERY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
WITH_TOOLS = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.call], ids=lambda family: family.name
)


def dialogue(answers: tuple[str, ...] = ANSWERS) -> list[dict[str, Any]]:
    """Turns whose questions quote the answers, and each other."""
    asked = ("Say: Send it back.", "ok  then…\n\nÇa coûte 42 €, 灯塔 😀?", answers[1])
    pairs = zip(asked, answers, strict=True)
    return [turn for question, answer in pairs for turn in (user(question), assistant(answer))]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def calling(content: str | None = None) -> list[dict[str, Any]]:
    """A conversation in which the assistant asks a tool."""
    call = {"id": CALL_ID, "type": "function", "function": {"name": "track", "arguments": dict(ARGUMENTS)}}
    return [
        user("Where is it?"),
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": CALL_ID, "name": "track", "content": "at sea"},
        assistant("At sea."),
    ]


def example(messages: list[dict[str, Any]], **row: Any) -> Example:
    return to_example({"messages": messages, **row}, ROW, CHAT)


def trained(encoder: Encoder, messages: list[dict[str, Any]], **row: Any) -> list[str]:
    """Each unbroken run of trained tokens, decoded."""
    encoded = encoder.encode(example(messages, **row))
    runs: list[list[int]] = []
    for position, (token, is_trained) in enumerate(zip(encoded.input_ids, encoded.completion_mask, strict=True)):
        if is_trained and not (position and encoded.completion_mask[position - 1]):
            runs.append([])
        if is_trained:
            runs[-1].append(token)
    return [encoder.decode(run, skip_special_tokens=False) for run in runs]


def reference_ids(directory: Path, messages: list[dict[str, Any]], **arguments: Any) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments))


@EVERY
@pytest.mark.parametrize("with_system", [False, True], ids=["", "system"])
def test_each_answer_is_trained_with_its_end_and_nothing_else(
    model_directory: MakeDirectory, family: Family, with_system: bool
) -> None:
    if with_system and not family.system:
        pytest.skip("refuses a system message, which is tested below")
    directory = model_directory(family.shape)
    encoder = load_encoder(directory)
    messages = [SYSTEM] * with_system + dialogue()
    expected = [family.answer(answer) for answer in ANSWERS]
    if family is QWEN3:  # an empty thought opens the answer to the last question
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert trained(encoder, messages) == expected
    assert list(encoder.encode(example(messages)).input_ids) == reference_ids(directory, messages)


@EVERY
@pytest.mark.parametrize("silenced", [0, 1, 2])
def test_an_answer_of_weight_0_is_not_trained(model_directory: MakeDirectory, family: Family, silenced: int) -> None:
    encoder = load_encoder(model_directory(family.shape))
    messages = dialogue()
    messages[2 * silenced + 1]["weight"] = 0
    expected = [family.answer(answer) for index, answer in enumerate(ANSWERS) if index != silenced]
    if family is QWEN3 and silenced != 2:
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert trained(encoder, messages) == expected


@WITH_TOOLS
@pytest.mark.parametrize("with_system", [False, True], ids=["", "system"])
def test_calls_of_tools_are_trained_and_their_results_are_not(
    model_directory: MakeDirectory, family: Family, with_system: bool
) -> None:
    directory = model_directory(family.shape)
    encoder = load_encoder(directory)
    messages = [SYSTEM] * with_system + calling()
    assert family.call
    expected = [family.call + family.shape.end_of_turn, family.answer("At sea.")]
    if family is QWEN3:
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert trained(encoder, messages, tools=TOOLS) == expected
    plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
    assert list(encoder.encode(example(messages, tools=TOOLS)).input_ids) == reference_ids(
        directory, plain, tools=TOOLS
    )
    messages[-1]["weight"] = 0
    assert trained(encoder, messages, tools=TOOLS) == expected[:1]


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.system], ids=lambda family: family.name)
def test_a_system_message_that_a_template_refuses_is_an_error_of_its_row(
    model_directory: MakeDirectory, family: Family
) -> None:
    encoder = load_encoder(model_directory(family.shape))
    with pytest.raises(RowError) as caught:
        encoder.encode(example([SYSTEM, *dialogue()]))
    assert (caught.value.row, caught.value.code, caught.value.param) == (ROW, "template_rejected", "messages")
    assert "no system role" in caught.value.message
    assert "system message into the first user message" in caught.value.fix


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.alternates], ids=lambda family: family.name)
def test_turns_out_of_order_are_an_error_of_their_row(model_directory: MakeDirectory, family: Family) -> None:
    encoder = load_encoder(model_directory(family.shape))
    with pytest.raises(RowError) as caught:
        encoder.encode(example([user("a"), user("b"), assistant("c")]))
    assert (caught.value.row, caught.value.code) == (ROW, "template_rejected")
    assert caught.value.message.startswith(f"Row {ROW}: ")
    assert "messages[1]" in caught.value.fix


@EVERY
def test_generation_starts_where_training_does(model_directory: MakeDirectory, family: Family) -> None:
    encoder = load_encoder(model_directory(family.shape))
    messages = dialogue()
    encoded = encoder.encode(example(messages))
    prompt = encoder.render_prompt(example(messages[:-1]).messages)
    last = len(encoded.completion_mask) - 1 - encoded.completion_mask[::-1].index(True)
    first = last
    while encoded.completion_mask[first - 1]:
        first -= 1
    if family is DEEPSEEK_R1:  # its prompt opens a thought that the template leaves out of every answer
        assert encoder.decode(prompt, skip_special_tokens=False).endswith("<｜Assistant｜><think>\n")
        assert encoded.input_ids[:first] == prompt[:first]
    else:
        assert encoded.input_ids[:first] == prompt


def test_thoughts_are_trained_where_the_template_shows_them(model_directory: MakeDirectory) -> None:
    thoughtful = [
        user("How?"),
        assistant("<think>\nfirst\n</think>\n\nSend it."),
        user("And then?"),
        assistant("<think>\nsecond\n</think>\n\nWait."),
    ]
    encoder = load_encoder(model_directory(QWEN3.shape))
    expected = ["Send it.<|im_end|>", "<think>\nsecond\n</think>\n\nWait.<|im_end|>"]
    assert trained(encoder, thoughtful) == expected
    apart = [
        user("How?"),
        assistant("Send it.", reasoning_content="first"),
        user("And then?"),
        assistant("Wait.", reasoning_content="second"),
    ]
    assert trained(encoder, apart) == expected
    forgetful = load_encoder(model_directory(DEEPSEEK_R1.shape))
    with pytest.raises(RowError) as caught:
        trained(forgetful, thoughtful)
    assert (caught.value.code, caught.value.param) == ("template_loses_answer", "messages[1]")
    assert "leaves out the reasoning of messages[1]" in caught.value.message
