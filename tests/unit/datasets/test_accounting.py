"""Every part of a row reaches the rendered text, or is told; what should be trained and is lost is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from core.datasets.encoding import Encoder, load_encoder
from core.datasets.examples import DataFormat, DataKind
from core.datasets.formats import RowError, to_example
from core.datasets.measurement import TokenInspection, measure_tokens
from tests.unit.datasets.model_shapes import ARGUMENTS, CALL_ID, DEEPSEEK_R1, FAMILIES, PHI4, SMOLLM2, TOOLS, Family
from tests.unit.datasets.model_shapes import LLAMA3 as LLAMA31
from tests.unit.datasets.model_shapes import MISTRAL as MISTRAL3
from tests.unit.datasets.template_shapes import CHATML, LLAMA3, MISTRAL, SHAPES, THINKING, ZEPHYR, Shape

MakeDirectory = Callable[..., Path]
CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
SYSTEM = {"role": "system", "content": "s"}  # a text that every rendering holds somewhere
PLAIN = [{"role": "user", "content": "Which lamp is lit?"}, {"role": "assistant", "content": "The tall one."}]


def calling(content: str | None, call_id: str = CALL_ID, arguments: Any = None) -> list[dict[str, Any]]:
    function = {"name": "track", "arguments": orjson.dumps(ARGUMENTS).decode() if arguments is None else arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "at sea"},
        {"role": "assistant", "content": "It is at sea."},
    ]


def measured(directory: Path, *rows: dict[str, Any], name: str | None = None, **options: Any) -> TokenInspection:
    path = directory / "rows.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return measure_tokens(path, CHAT, load_encoder(directory, name), **options)


def told(found: TokenInspection) -> list[tuple[str, int, int | None]]:
    return [(notice.code, notice.rows, notice.first_row) for notice in found.notices]


def refusal(encoder: Encoder, row: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        encoder.encode(to_example(row, 5, CHAT))
    assert caught.value.row == 5
    return caught.value


@pytest.mark.parametrize("shape", [*SHAPES, THINKING], ids=lambda shape: shape.name)
def test_nothing_is_said_of_rows_that_are_rendered_whole(model_directory: MakeDirectory, shape: Shape) -> None:
    assert measured(model_directory(shape), {"messages": PLAIN}, {"messages": PLAIN * 2}).notices == ()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_that_know_tools_lose_no_more_than_ids(model_directory: MakeDirectory, family: Family) -> None:
    assert measured(model_directory(family.shape), {"messages": PLAIN}).notices == ()
    if family.call is not None and family is not PHI4:
        lost = {"call_ids_not_rendered"} | ({"tools_not_rendered"} if family is DEEPSEEK_R1 else set())
        found = measured(model_directory(family.shape), {"messages": calling(None), "tools": TOOLS})
        assert {notice.code for notice in found.notices} <= lost


def test_a_system_text_that_a_template_forgets_is_told(model_directory: MakeDirectory) -> None:
    found = measured(
        model_directory(MISTRAL),
        {"messages": PLAIN},
        {"messages": [SYSTEM, *PLAIN]},
        {"messages": [SYSTEM, *PLAIN, *PLAIN]},
        {"messages": [SYSTEM, *PLAIN]},
    )
    assert told(found) == [("content_not_rendered", 3, 2)]
    assert found.notices[0].message == "The model's chat template leaves out the text of system messages."


def test_rows_outside_the_sample_are_accounted_for(model_directory: MakeDirectory) -> None:
    rows = [{"messages": PLAIN}] * 300 + [{"messages": [SYSTEM, *PLAIN]}] * 7 + [{"messages": PLAIN}] * 50
    found = measured(model_directory(MISTRAL), *rows, sample_rows=2)
    assert told(found) == [("content_not_rendered", 7, 301)]


@pytest.mark.parametrize(
    "call",
    [
        {"id": "call_1", "type": "function", "function": {"name": "track", "arguments": '{"parcel": "7"}'}},
        {"name": "track", "arguments": {"parcel": "7"}},
        {"name": "track", "arguments": '{"parcel":"7"}'},
    ],
    ids=["openai", "flat", "flat text"],
)
@pytest.mark.parametrize("content", [None, ""])
def test_calls_that_a_template_forgets_are_refused(
    model_directory: MakeDirectory, call: dict[str, Any], content: str | None
) -> None:
    turns = [PLAIN[0], {"role": "assistant", "content": content, "tool_calls": [call]}]
    error = refusal(load_encoder(model_directory(LLAMA3)), {"messages": turns})
    assert (error.code, error.param) == ("template_loses_answer", "messages[1]")
    assert "leaves out the tool calls of messages[1]" in error.message
    assert "None of the templates of this service keeps it" in error.message


def test_a_call_beside_text_is_trained_or_refused(model_directory: MakeDirectory) -> None:
    row = {"messages": calling("Let me look."), "tools": TOOLS}
    assert "the tool calls of messages[1]" in refusal(load_encoder(model_directory(SMOLLM2.shape)), row).message
    assert "the text of messages[1]" in refusal(load_encoder(model_directory(LLAMA31.shape)), row).message
    row["messages"][1]["weight"] = 0
    codes = {code for code, *_ in told(measured(model_directory(LLAMA31.shape), row))}
    assert "content_not_rendered" in codes


def test_results_and_definitions_of_tools_that_a_template_forgets_are_told(model_directory: MakeDirectory) -> None:
    found = measured(model_directory(SMOLLM2.shape), {"messages": PLAIN, "tools": TOOLS}, {"messages": PLAIN})
    assert told(found) == [("tools_not_rendered", 1, 1)]
    assert "leaves out the tools." in found.notices[0].message
    silent = CHATML.source.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}").replace(
        "m['content'] +", "(m['content'] or m.tool_calls | tojson) +"
    )
    found = measured(model_directory(CHATML, silent), {"messages": calling(None)})
    assert ("content_not_rendered", 1, 1) in told(found)
    assert "the text of tool messages" in found.notices[0].message


def test_text_of_which_a_template_shows_the_beginning_only_is_told(model_directory: MakeDirectory) -> None:
    short = CHATML.source.replace("m['content']", "(m['content'][:9] if m['role'] == 'user' else m['content'])")
    found = measured(model_directory(CHATML, short), {"messages": PLAIN})
    assert told(found) == [("content_not_rendered", 1, 1)]


def test_other_fields_of_messages_are_told(model_directory: MakeDirectory) -> None:
    named = [{**PLAIN[0], "name": "Ada", "mood": {"a": 1}}, PLAIN[1]]
    found = measured(model_directory(CHATML), {"messages": named})
    assert [notice.message for notice in found.notices] == [
        "The model's chat template leaves out the `name` of user messages.",
        "The model's chat template leaves out the `mood` of user messages.",
    ]


def test_thoughts_that_a_template_never_shows_are_refused(model_directory: MakeDirectory) -> None:
    turns = [PLAIN[0], {**PLAIN[1], "reasoning_content": "It stands higher."}]
    error = refusal(load_encoder(model_directory(CHATML)), {"messages": turns})
    assert "leaves out the reasoning of messages[1]" in error.message
    said = [PLAIN[0], {"role": "assistant", "content": "<think>\nHigher.\n</think>\n\nThe tall one."}]
    found = measured(model_directory(THINKING), {"messages": said}, {"messages": said * 2})
    assert told(found) == [("reasoning_not_rendered", 1, 2)]  # of the earlier turn, as at inference
    assert "of assistant messages before the last" in found.notices[0].message


def test_a_template_of_ours_that_keeps_the_answer_is_named(model_directory: MakeDirectory) -> None:
    forgetful = ZEPHYR.source.replace("message['content']", "''").replace(
        "'<|assistant|>\\n' + m['content']", "'<|assistant|>\\n' + (m['content'] if m['content'] | length < 9 else '')"
    )
    error = refusal(load_encoder(model_directory(ZEPHYR, forgetful)), {"messages": PLAIN})
    assert "leaves out the text of messages[1]" in error.message
    assert "With `chat_template` 'zephyr' it is kept." in error.message


def test_a_template_without_tools_says_so(model_directory: MakeDirectory) -> None:
    for content in (None, ""):
        error = refusal(load_encoder(model_directory(CHATML)), {"messages": calling(content)})
        assert error.code in ("template_knows_no_tools", "template_loses_answer")
        assert "knows no tools" in error.message or "tool calls" in error.message
    ours = refusal(load_encoder(model_directory(MISTRAL, None), "zephyr"), {"messages": calling(None)})
    assert ours.code == "template_knows_no_tools"


def test_the_form_of_call_ids_is_named(model_directory: MakeDirectory) -> None:
    row = {"messages": calling(None, call_id="call_1"), "tools": TOOLS}
    error = refusal(load_encoder(model_directory(MISTRAL3.shape)), row)
    assert error.code == "template_rejected"
    assert "nine letters and digits" in error.fix
    assert "messages[1].tool_calls[0].id is 'call_1'" in error.fix


def test_control_tokens_inside_content_are_told(model_directory: MakeDirectory) -> None:
    found = measured(
        model_directory(CHATML),
        {"messages": PLAIN},
        {"messages": [{"role": "user", "content": "What does <|im_end|> mean?"}, PLAIN[1]]},
        {"messages": [PLAIN[0], {"role": "assistant", "content": "The tall one.<|im_end|>"}]},
    )
    assert told(found) == [("control_tokens_in_content", 2, 2)]
    assert "'<|im_end|>'" in found.notices[0].message


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Hi [/INST]",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        "<start_of_turn>user\nHi<end_of_turn>\n",
        "\n\nHuman: Hi\n\nAssistant:",
        "Below is a task.\n\n### Instruction:\nHi\n\n### Response:\n",
    ],
)
def test_messages_that_were_rendered_already_are_told(model_directory: MakeDirectory, prompt: str) -> None:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Hello"}]
    found = measured(model_directory(CHATML), {"messages": turns})
    assert told(found) == [("already_rendered", 1, 1)]


def test_arguments_that_are_no_object_are_told(model_directory: MakeDirectory) -> None:
    directory = model_directory(MISTRAL3.shape)
    rows = [
        {"messages": calling(None, arguments=arguments), "tools": TOOLS}
        for arguments in ('"{\\"parcel\\": \\"7\\"}"', '{"parcel": "7"}', "{parcel: 7}")
    ]
    found = told(measured(directory, *rows))
    assert ("arguments_encoded_twice", 1, 1) in found
    assert ("arguments_not_json", 1, 3) in found


def test_ends_that_are_cut_are_not_said_to_be_trained(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML)
    whole = measured(directory, {"messages": PLAIN}, {"messages": PLAIN})
    longest = whole.statistics.longest
    assert (whole.eos_trained, whole.rows_without_eos) == (True, 0)
    cut = measured(directory, {"messages": PLAIN}, {"messages": PLAIN}, max_length=longest - 3)
    assert (cut.eos_trained, cut.rows_without_eos, cut.truncated_rows) == (False, 2, 2)
    assert told(cut) == [("answer_end_cut", 2, 1)]


def test_the_inspection_counts_and_shows_what_is_left_after_truncation(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML)
    whole = measured(directory, {"messages": PLAIN}, {"messages": PLAIN * 3})
    cut = measured(directory, {"messages": PLAIN}, {"messages": PLAIN * 3}, max_length=30)
    assert cut.statistics.tokens == 30 + min(30, whole.statistics.token_lengths[0])
    assert [row.tokens for row in cut.preview] == [min(30, row.tokens) for row in whole.preview]
    assert [row.is_clipped for row in cut.preview] == [row.tokens > 30 for row in whole.preview]
    assert sum(row.trained_tokens for row in cut.preview) == cut.statistics.trained_tokens
    assert cut.histogram.edges[-1] <= 48
    [first, second] = ("".join(text for text, _ in row.segments) for row in cut.preview)
    assert second.startswith(first[:40])
    assert len(second) < len("".join(text for text, _ in whole.preview[1].segments))


@pytest.mark.parametrize("text", ["<|begin_of_text|>The lamp.<|eot_id|>", "The lamp."])
def test_text_begins_with_one_bos(model_directory: MakeDirectory, text: str) -> None:
    encoder = load_encoder(model_directory(LLAMA3))
    encoded = encoder.encode(to_example({"text": text}, 1, DataFormat("text", DataKind.TEXT, {"text": "text"})))
    bos = encoder.encode(to_example({"text": ""}, 1, DataFormat("text", DataKind.TEXT, {"text": "text"}))).input_ids[0]
    assert encoded.input_ids.count(bos) == 1
    assert encoded.input_ids[0] == bos
    shown = encoder.segments(to_example({"text": text}, 1, DataFormat("text", DataKind.TEXT, {"text": "text"})))
    assert "".join(piece for piece, _ in shown).count("<|begin_of_text|>") == 1


def test_text_that_ends_itself_ends_once(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    example = to_example({"text": "The lamp.<|im_end|>"}, 1, DataFormat("text", DataKind.TEXT, {"text": "text"}))
    assert encoder.encode(example).input_ids.count(encoder.eos_token_id) == 1
