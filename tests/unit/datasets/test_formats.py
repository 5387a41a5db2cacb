"""Formats are told from content, and every row either becomes an example or says what is wrong with it."""

import pickle
from typing import Any

import pytest

from core.datasets.detection import detect_format
from core.datasets.examples import DataFormat, DataKind, Message
from core.datasets.formats import RowError, to_example
from core.errors import InvalidDatasetError

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
MESSAGES = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})


@pytest.mark.parametrize(
    ("row", "shape", "kind", "columns"),
    [
        (CHAT, "messages", DataKind.CHAT, {"messages": "messages"}),
        ({"id": 1, "dialog": CHAT["messages"]}, "messages", DataKind.CHAT, {"messages": "dialog"}),
        (
            {"conversations": [{"from": "human", "value": "a"}], "system": "s"},
            "sharegpt",
            DataKind.CHAT,
            {"conversations": "conversations", "system": "system"},
        ),
        (
            {"prompt": "a", "completion": "b", "id": "x"},
            "prompt_completion",
            DataKind.COMPLETION,
            {"prompt": "prompt", "completion": "completion"},
        ),
        (
            {"instruction": "a", "input": "", "output": "b"},
            "alpaca",
            DataKind.COMPLETION,
            {"instruction": "instruction", "output": "output", "input": "input"},
        ),
        (
            {"Question": "a", "Answer": "b"},
            "question_answer",
            DataKind.COMPLETION,
            {"question": "Question", "answer": "Answer"},
        ),
        ({"text": "a", "source_url": "b"}, "text", DataKind.TEXT, {"text": "text"}),
    ],
)
def test_formats_are_detected(row: dict[str, Any], shape: str, kind: DataKind, columns: dict[str, str]) -> None:
    detected = detect_format([row, row])
    assert detected == DataFormat(shape, kind, columns)
    to_example(row, 1, detected)


def test_detection_survives_a_bad_row() -> None:
    assert detect_format([{"oops": 1}, CHAT, CHAT]).shape == "messages"
    assert detect_format([{"messages": "oops"}, CHAT]).shape == "messages"


def test_unknown_columns_are_named() -> None:
    with pytest.raises(InvalidDatasetError, match=r"'a', 'b', 'c'.*format") as caught:
        detect_format([{"a": "x", "b": "y", "c": "z"}])
    assert caught.value.code == "unknown_format"


def test_each_assistant_message_is_trained_unless_weighted_0() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c", "name": "ann"},
            {"role": "assistant", "content": "d", "weight": 1},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "f", "weight": None},
        ]
    }
    messages = to_example(row, 3, MESSAGES).messages
    assert [(m.role, m.trained) for m in messages] == [
        ("system", False),
        ("user", False),
        ("assistant", False),
        ("user", False),
        ("assistant", True),
        ("user", False),
        ("assistant", True),
    ]
    assert messages[3].extra == {"name": "ann"}


def test_blank_answers_are_not_trained() -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]}
    assert not to_example(row, 1, MESSAGES).messages[1].trained


def test_typed_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"text": "b"}]}]}
    assert [m.content for m in to_example(row, 1, MESSAGES).messages] == ["Hello there", "b"]


def test_tools_and_tool_calls_are_kept_with_arguments_as_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    example = to_example(row, 1, MESSAGES)
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)
    assert example.messages[1].trained
    assert example.messages[1].extra["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert example.messages[2].extra == {"tool_call_id": "1"}


def test_columns_of_tables_may_hold_json_text_and_nulls() -> None:
    row = {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "tools": None}
    assert len(to_example(row, 1, detect_format([row])).messages) == 2
    padded = {"messages": [{"role": "user", "content": "a", "tool_calls": None, "weight": None}]}
    assert to_example(padded, 1, MESSAGES).messages == (Message("user", "a", trained=False),)


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "You count."}
    example = to_example(row, 1, detect_format([row]))
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "You count."),
        ("user", "Add.\n\n1 2"),
        ("assistant", "3"),
    ]


def test_sharegpt_roles_are_translated() -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
            {"from": "observation", "value": "c"},
        ]
    }
    example = to_example(row, 1, detect_format([row]))
    assert [(m.role, m.content, m.trained) for m in example.messages] == [
        ("system", "s", False),
        ("user", "a", False),
        ("assistant", "b", True),
        ("tool", "c", False),
    ]


def test_conversational_prompts_train_the_completion_only() -> None:
    row = {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        "completion": [{"role": "assistant", "content": "d"}],
    }
    data_format = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": "prompt", "completion": "completion"})
    assert [m.trained for m in to_example(row, 1, data_format).messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "param", "said"),
    [
        ({}, "messages", "no 'messages'"),
        ({"messages": "hello"}, "messages", "is text"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": [1]}, "messages[0]", "a number"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role", "wizard"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role", "user"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "a number"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "image_url",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "messages[0].weight", "0.5"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": [1]}]}, "messages[0].weight", "[1]"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": 1}]}, "messages[0].tool_calls", "list"),
        ({**CHAT, "tools": "x"}, "tools", "list"),
    ],
)
def test_a_bad_row_says_where_and_what(row: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(RowError) as caught:
        to_example(row, 41, MESSAGES)
    error = caught.value
    assert (error.row, error.param, error.code) == (41, param, "invalid_dataset")
    assert said in error.problem
    assert error.fix
    assert error.message.startswith("Row 41: ")


def test_row_errors_cross_process_boundaries() -> None:
    error = RowError(7, "is bad.", "messages", "Mend it.", code="template_rejected")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.row, copy.problem, copy.param, copy.fix, copy.code) == (
        7,
        "is bad.",
        "messages",
        "Mend it.",
        error.code,
    )
    assert copy.message == error.message


ASKED, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "z"},
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "z"},
        {"question": "q", "chosen": "a", "rejected": "z", "score": 1},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": "q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": "q", "chosen": GOOD, "rejected": BAD},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: z"},
        {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
)
def test_of_preference_pairs_the_chosen_answer_is_trained(row: dict[str, Any]) -> None:
    detected = detect_format([row, row])
    assert (detected.shape, detected.kind) == ("preference", DataKind.CHAT)
    messages = to_example(row, 1, detected).messages
    assert messages == (Message("user", "q", trained=False), Message("assistant", "a", trained=True))


def test_earlier_answers_of_preference_pairs_are_not_trained() -> None:
    row = {"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, GOOD, ASKED, BAD], "system": "s"}
    messages = to_example(row, 1, detect_format([row])).messages
    assert [(m.role, m.trained) for m in messages] == [
        ("system", False),
        ("user", False),
        ("assistant", False),
        ("user", False),
        ("assistant", True),
    ]


def test_a_preference_pair_without_an_answer_is_a_row_error() -> None:
    row = {"prompt": "q", "chosen": None, "rejected": "z"}
    with pytest.raises(RowError) as caught:
        to_example(row, 7, detect_format([{**row, "chosen": "a"}]))
    assert (caught.value.row, caught.value.param) == (7, "chosen")


def test_conversational_prompts_keep_their_completions() -> None:
    row = {"prompt": [ASKED], "completion": [GOOD]}
    assert to_example(row, 1, detect_format([row])).messages[-1] == Message("assistant", "a", trained=True)
