"""Token ids equal transformers', and what is trained is what the assistant wrote, through its end of turn."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from transformers import AutoTokenizer

from core.datasets.encoding import Encoder, load_encoder
from core.datasets.examples import DataFormat, DataKind, EncodedExample, Example
from core.datasets.formats import RowError, to_example
from core.errors import InvalidModelError, InvalidRequestError
from tests.unit.datasets.template_shapes import (
    CHATML,
    GEMMA,
    LLAMA3,
    MARKED,
    MARKED_WITHOUT_END,
    MISTRAL,
    OLD,
    PHI3,
    SHAPES,
    THINKING,
    WORDS,
    Shape,
)

MakeDirectory = Callable[..., Path]
CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
COMPLETION = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": "prompt", "completion": "completion"})

SINGLE = [{"role": "user", "content": "How do I return a lantern?"}, {"role": "assistant", "content": "Send it back."}]
DIALOGUE = [
    *SINGLE,
    {"role": "user", "content": "ok  then…\n\nÇa coûte 42 €, 灯塔 😀?"},
    {"role": "assistant", "content": "Ça coûte 42 €.\n\n  - déjà vu 😀\n\tdone"},
    {"role": "user", "content": "s"},
    {"role": "assistant", "content": "s"},
]
ASSISTANT_ASKED_FIRST = DIALOGUE[:4]
TRICKY = [
    {"role": "user", "content": "Say: Send it back. <think>"},
    {"role": "assistant", "content": "Send it back."},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "Send it back."},
]
CONVERSATIONS = {"single": SINGLE, "dialogue": DIALOGUE, "half": ASSISTANT_ASKED_FIRST, "tricky": TRICKY}


def example(messages: list[dict[str, Any]], **row: Any) -> Example:
    return to_example({"messages": messages, **row}, 1, CHAT)


def trained_runs(encoder: Encoder, encoded: EncodedExample) -> list[str]:
    """Each unbroken run of trained tokens, decoded."""
    runs: list[list[int]] = []
    previous = False
    for token, is_trained in zip(encoded.input_ids, encoded.completion_mask, strict=True):
        if is_trained and not previous:
            runs.append([])
        if is_trained:
            runs[-1].append(token)
        previous = is_trained
    return [encoder.decode(run, skip_special_tokens=False) for run in runs]


def reference_ids(directory: Path, messages: list[dict[str, Any]], **arguments: Any) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments))


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("shape", [*SHAPES, THINKING], ids=lambda shape: shape.name)
def test_ids_equal_transformers(
    model_directory: MakeDirectory, shape: Shape, conversation: list[dict[str, Any]]
) -> None:
    directory = model_directory(shape)
    encoded = load_encoder(directory).encode(example(conversation))
    assert list(encoded.input_ids) == reference_ids(directory, conversation)


@pytest.mark.parametrize("shape", [*SHAPES, THINKING, WORDS], ids=lambda shape: shape.name)
def test_prompt_ids_equal_transformers(model_directory: MakeDirectory, shape: Shape) -> None:
    directory = model_directory(shape)
    prompt = DIALOGUE[:3]
    expected = reference_ids(directory, prompt, add_generation_prompt=True)
    ids = list(load_encoder(directory).render_prompt(example(prompt).messages))
    if shape is OLD:
        assert ids[: len(expected)] == expected
        assert load_encoder(directory).decode(ids, skip_special_tokens=False).endswith("<|assistant|>")
    else:
        assert ids == expected


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_assistant_turn_is_trained_through_its_end_and_nothing_else(
    model_directory: MakeDirectory, shape: Shape, conversation: list[dict[str, Any]]
) -> None:
    encoder = load_encoder(model_directory(shape))
    encoded = encoder.encode(example(conversation))
    answers = [m["content"] for m in conversation if m["role"] == "assistant"]
    assert [run.strip() for run in trained_runs(encoder, encoded)] == [
        (answer.strip() if shape in (LLAMA3, MISTRAL, GEMMA) else answer) + shape.end_of_turn for answer in answers
    ]


@pytest.mark.parametrize("shape", [*SHAPES, THINKING, WORDS], ids=lambda shape: shape.name)
def test_the_prompt_of_generation_is_what_training_puts_before_the_answer(
    model_directory: MakeDirectory, shape: Shape
) -> None:
    encoder = load_encoder(model_directory(shape))
    encoded = encoder.encode(example(DIALOGUE))
    prompt = encoder.render_prompt(example(DIALOGUE[:-1]).messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.completion_mask[len(prompt)]
    assert not encoded.completion_mask[len(prompt) - 1]


@pytest.mark.parametrize(
    "shape", [CHATML, LLAMA3, MISTRAL, GEMMA, MARKED, PHI3, THINKING], ids=lambda shape: shape.name
)
def test_turns_of_weight_0_are_not_trained(model_directory: MakeDirectory, shape: Shape) -> None:
    encoder = load_encoder(model_directory(shape))
    messages = [dict(m) for m in DIALOGUE[:4]]
    messages[1]["weight"] = 0
    runs = trained_runs(encoder, encoder.encode(example(messages)))
    assert len(runs) == 1
    assert runs[0].strip().endswith(messages[3]["content"] + shape.end_of_turn)
    messages[1]["weight"], messages[3]["weight"] = 1, 0
    runs = trained_runs(encoder, encoder.encode(example(messages)))
    assert [run.strip() for run in runs] == ["Send it back." + shape.end_of_turn]
    messages[1]["weight"] = 0
    assert not any(encoder.encode(example(messages)).completion_mask)


def test_marks_equal_transformers_mask(model_directory: MakeDirectory) -> None:
    directory = model_directory(MARKED)
    reference = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        DIALOGUE, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = load_encoder(directory).encode(example(DIALOGUE))
    assert list(encoded.input_ids) == reference["input_ids"]
    assert [int(t) for t in encoded.completion_mask] == reference["assistant_masks"]


def test_reasoning_templates_train_what_they_show(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(THINKING))
    messages = [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nSend it."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "<think>\nsecond\n</think>\n\nWait."},
    ]
    assert trained_runs(encoder, encoder.encode(example(messages))) == [
        "Send it.<|im_end|>",
        "<think>\nsecond\n</think>\n\nWait.<|im_end|>",
    ]
    assert trained_runs(encoder, encoder.encode(example(SINGLE))) == ["<think>\n\n</think>\n\nSend it back.<|im_end|>"]


def test_a_template_without_end_of_turn_gets_eos(model_directory: MakeDirectory) -> None:
    directory = model_directory(WORDS)
    encoder = load_encoder(directory)
    encoded = encoder.encode(example(SINGLE))
    assert list(encoded.input_ids) == [*reference_ids(directory, SINGLE), encoder.eos_token_id]
    assert trained_runs(encoder, encoded) == [" Send it back.\n</s>"]


def test_a_template_that_rewrites_answers_is_refused(model_directory: MakeDirectory) -> None:
    source = CHATML.source.replace("m['content']", "m['content'] | replace('e', '3')")
    encoder = load_encoder(model_directory(CHATML, source))
    with pytest.raises(RowError) as caught:
        encoder.encode(example(DIALOGUE))
    assert caught.value.code == "template_not_supported"
    assert "assistant turn 1" in caught.value.message


def test_a_conversation_the_template_rejects_is_a_row_error(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(GEMMA))
    with pytest.raises(RowError, match="no system role") as caught:
        encoder.encode(example([{"role": "system", "content": "x"}, *SINGLE]))
    assert (caught.value.row, caught.value.code) == (1, "template_rejected")
    with pytest.raises(InvalidRequestError, match="no system role"):
        encoder.render_prompt(example([{"role": "system", "content": "x"}, SINGLE[0]]).messages)


def test_templates_run_in_a_sandbox(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML, "{{ messages.__class__.__mro__[-1].__subclasses__() }}"))
    with pytest.raises(RowError) as caught:
        encoder.encode(example(SINGLE))
    assert caught.value.code == "template_rejected"


TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.content is defined %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + (c.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_tool_calls_are_trained(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML, TOOLS_TEMPLATE)
    tools = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "track", "arguments": '{"parcel": "é"}'}}
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "at sea"},
        {"role": "assistant", "content": "At sea."},
    ]
    encoder = load_encoder(directory)
    encoded = encoder.encode(example(messages, tools=tools))
    assert trained_runs(encoder, encoded) == ['<call>track{"parcel": "é"}</call><|im_end|>', "At sea.<|im_end|>"]
    parsed = [dict(m) for m in messages]
    parsed[1]["tool_calls"] = [{**call, "function": {"name": "track", "arguments": {"parcel": "é"}}}]
    assert list(encoded.input_ids) == reference_ids(directory, parsed, tools=tools)


def completion(prompt: str, answer: str) -> Example:
    return to_example({"prompt": prompt, "completion": answer}, 1, COMPLETION)


@pytest.mark.parametrize("shape", [CHATML, LLAMA3, MISTRAL], ids=lambda shape: shape.name)
@pytest.mark.parametrize(("prompt", "answer"), [("Q: why?\nA:", " Because."), ("lan", "tern"), ("a\n", "\nb")])
def test_without_template_the_completion_and_eos_are_trained(
    model_directory: MakeDirectory, shape: Shape, prompt: str, answer: str
) -> None:
    encoder = load_encoder(model_directory(shape, None))
    assert not encoder.has_chat_template
    encoded = encoder.encode(completion(prompt, answer))
    asked = encoder.render_prompt(completion(prompt, answer).messages[:1])
    assert encoded.input_ids[: len(asked)] == asked
    assert encoded.completion_mask == (False,) * len(asked) + (True,) * (len(encoded.input_ids) - len(asked))
    assert encoded.input_ids[-1] == encoder.eos_token_id
    assert encoder.decode(encoded.input_ids[len(asked) : -1]).strip() == answer.strip()
    assert encoder.decode(encoded.input_ids) in (prompt + answer, f"{prompt} {answer}")


def test_without_template_conversations_are_refused(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML, None))
    with pytest.raises(RowError) as caught:
        encoder.encode(example(DIALOGUE))
    assert caught.value.code == "no_chat_template"
    with pytest.raises(InvalidRequestError):
        encoder.render_prompt(example(DIALOGUE[:3]).messages)


@pytest.mark.parametrize("shape", [CHATML, LLAMA3, MISTRAL], ids=lambda shape: shape.name)
def test_text_is_trained_whole_with_eos(model_directory: MakeDirectory, shape: Shape) -> None:
    directory = model_directory(shape)
    encoder = load_encoder(directory)
    text = "The keeper lights the lamp.\n\nDéjà vu 😀"
    encoded = encoder.encode(Example(1, text=text))
    assert list(encoded.input_ids) == [
        *AutoTokenizer.from_pretrained(directory)(text)["input_ids"],
        encoder.eos_token_id,
    ]
    assert all(encoded.completion_mask)
    assert not any(encoder.encode(Example(1, text="  \n")).completion_mask)


def test_truncation_keeps_the_start_and_counts_the_rest(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    whole = encoder.encode(example(DIALOGUE))
    cut = encoder.encode(example(DIALOGUE), max_length=20)
    assert cut.input_ids == whole.input_ids[:20]
    assert cut.completion_mask == whole.completion_mask[:20]
    assert cut.truncated_tokens == len(whole.input_ids) - 20
    assert encoder.encode(example(DIALOGUE), max_length=len(whole.input_ids)).truncated_tokens == 0


def test_a_batch_gives_what_single_rows_give(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(LLAMA3))
    rows = [example(SINGLE), Example(2, text="text"), example(DIALOGUE), Example(4, text="more"), example(TRICKY)] * 60
    assert list(encoder.encode_batch(rows, 30)) == [encoder.encode(row, 30) for row in rows]


def test_segments_show_the_whole_rendering(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    segments = encoder.segments(example(SINGLE))
    assert segments == (
        ("<|im_start|>user\nHow do I return a lantern?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Send it back.<|im_end|>", True),
        ("\n", False),
    )
    raw = encoder.segments(Example(1, text="raw"))  # its first token has nothing to be predicted from
    assert "".join(text for text, _ in raw) == "raw<|im_end|>"
    assert [trained for _, trained in raw] == [False, True]


@pytest.mark.parametrize("shape", [*SHAPES, THINKING], ids=lambda shape: shape.name)
def test_segments_mark_the_tokens_that_are_trained(model_directory: MakeDirectory, shape: Shape) -> None:
    encoder = load_encoder(model_directory(shape))
    encoded = encoder.encode(example(DIALOGUE))
    shown = [text for text, trained in encoder.segments(example(DIALOGUE)) if trained]
    assert [text.strip() for text in shown] == [text.strip() for text in trained_runs(encoder, encoded)]


@pytest.mark.parametrize("shape", [CHATML, LLAMA3, MISTRAL], ids=lambda shape: shape.name)
def test_segments_of_prompts_and_completions(model_directory: MakeDirectory, shape: Shape) -> None:
    encoder = load_encoder(model_directory(shape, None))
    for prompt, answer in (("Q: why?\nA:", " Because."), ("lan", "tern")):
        asked, said = encoder.segments(completion(prompt, answer))
        assert asked == ((shape.bos or "") + prompt, False)
        assert said == (answer + shape.eos, True)


@pytest.mark.parametrize("shape", [CHATML, LLAMA3, GEMMA, PHI3, MARKED_WITHOUT_END], ids=lambda shape: shape.name)
def test_the_end_of_turn_stops_generation(model_directory: MakeDirectory, shape: Shape) -> None:
    encoder = load_encoder(model_directory(shape))
    texts = {encoder.decode([token], skip_special_tokens=False) for token in encoder.stop_token_ids}
    assert texts == {shape.eos, shape.end_of_turn}


def test_padding_and_truncation_saved_with_a_tokenizer_do_not_apply(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML)
    expected = load_encoder(directory).encode(example(DIALOGUE))
    data = orjson.loads((directory / "tokenizer.json").read_bytes())
    data["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|im_end|>",
    }  # fmt: skip
    (directory / "tokenizer.json").write_bytes(orjson.dumps(data))
    assert load_encoder(directory).encode(example(DIALOGUE)) == expected


def test_tokens_only_the_configuration_knows_are_added(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML, CHATML.source.replace("<|im_end|>", "<|eom|>"))
    config = orjson.loads((directory / "tokenizer_config.json").read_bytes())
    config["eos_token"] = "<|eom|>"
    config["pad_token"] = "<|pad|>"
    (directory / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    encoder = load_encoder(directory)
    encoded = encoder.encode(example(SINGLE))
    assert list(encoded.input_ids) == reference_ids(directory, SINGLE)
    assert trained_runs(encoder, encoded) == ["Send it back.<|eom|>"]
    assert encoder.decode([encoder.pad_token_id], skip_special_tokens=False) == "<|pad|>"


def test_an_older_directory_holds_its_template_in_the_configuration(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML, None)
    config = orjson.loads((directory / "tokenizer_config.json").read_bytes())
    config["chat_template"] = [
        {"name": "tool_use", "template": "{{ raise_exception('not this one') }}"},
        {"name": "default", "template": CHATML.source},
    ]
    (directory / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    assert list(load_encoder(directory).encode(example(SINGLE)).input_ids) == reference_ids(directory, SINGLE)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError) as caught:
        load_encoder(tmp_path)
    assert caught.value.code == "no_tokenizer"
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json"):
        load_encoder(tmp_path)


def test_a_template_that_does_not_compile_is_refused(model_directory: MakeDirectory) -> None:
    with pytest.raises(InvalidModelError) as caught:
        load_encoder(model_directory(CHATML, "{% for m in messages %}"))
    assert caught.value.code == "invalid_chat_template"


def test_a_model_without_eos_is_refused(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML)
    (directory / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InvalidModelError) as caught:
        load_encoder(directory)
    assert caught.value.code == "no_eos_token"
    (directory / "config.json").write_text('{"eos_token_id": 0}')
    assert load_encoder(directory).eos_token_id == 0


def test_short_rows_are_encoded_fast(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(LLAMA3))
    rows = [example(SINGLE)] * 2000
    list(encoder.encode_batch(rows[:100]))
    started = time.process_time()
    assert sum(1 for _ in encoder.encode_batch(rows)) == 2000
    assert time.process_time() - started < 4.0  # seconds of CPU over all threads; about 0.5 measured
