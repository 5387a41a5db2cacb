"""The shapes that people's data have: each is read whole, or refused by its name with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.datasets.detection import detect_format
from core.datasets.formats import RowError, to_example
from core.datasets.inspection import inspect_file
from core.errors import InvalidDatasetError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def turns(row: dict[str, Any], *others: dict[str, Any]) -> list[tuple[str, str]]:
    """Roles and texts of a row, those that are trained with a star."""
    example = to_example(row, 1, detect_format([row, *others]))
    return [(message.role + "*" * message.trained, message.content) for message in example.messages]


ASKED = [("user", "q"), ("assistant*", "a")]
BRIEF = [("system", "Be brief."), *ASKED]
READ: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("dolly", {"instruction": "q", "context": "Facts.", "response": "a"}, [("user", "q\n\nFacts."), ASKED[1]]),
    (
        "alpaca with history",
        {"instruction": "q", "input": "", "output": "a", "history": [["q0", "a0"]]},
        [("user", "q0"), ("assistant*", "a0"), *ASKED],
    ),
    (
        "history as json text and as messages",
        {"instruction": "q", "output": "a", "history": json.dumps([USER, ANSWER])},
        [*ASKED, *ASKED],
    ),
    (
        "ms-swift",
        {"system": "Be brief.", "query": "q", "response": "a", "history": [["q0", "a0"]]},
        [BRIEF[0], ("user", "q0"), ("assistant*", "a0"), *ASKED],
    ),
    (
        "bedrock",
        {
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "q"}]},
                {"role": "assistant", "content": [{"text": "a"}]},
            ],
        },
        BRIEF,
    ),
    (
        "gemini",
        {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        ASKED,
    ),
    (
        "typed parts with a weight",
        {
            "messages": [
                {"role": "human", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                {"role": "gpt", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
            ]
        },
        ASKED,
    ),
    ("trl text and list", {"prompt": "q", "completion": [ANSWER]}, ASKED),
    ("trl list and text", {"prompt": [USER], "completion": "a"}, ASKED),
    (
        "prompt ending in a blank answer",
        {"prompt": [USER, {"role": "assistant", "content": ""}], "completion": "a"},
        ASKED,
    ),
    ("ultrachat", {"id": "0", "data": ["q", "a", "q2", "a2"]}, [*ASKED, ("user", "q2"), ("assistant*", "a2")]),
    ("odd names", {"Question?": "q", "Answer!": "a"}, ASKED),
    ("one column twice", {"System Prompt": "Be brief.", "prompt": "q", "completion": "a"}, BRIEF),
    ("summaries", {"document": "q", "summary": "a", "id": 1}, ASKED),
    ("text with a summary", {"text": "q", "summary": "a"}, ASKED),
    ("prompt with a text", {"prompt": "q", "text": "a"}, ASKED),
    (
        "a system column beside the same turn",
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]},
        BRIEF,
    ),
    ("undesired", {"prompt": "q", "completion": "a", "label": False}, [("user", "q"), ("assistant", "a")]),
    ("undesired messages", {"messages": [USER, ANSWER], "kto_tag": "false"}, [("user", "q"), ("assistant", "a")]),
    ("desired", {"prompt": "q", "completion": "a", "label": 1}, ASKED),
    ("a label of something else", {"prompt": "q", "completion": "a", "label": 7}, ASKED),
    ("pair after messages", {"messages": [USER], "chosen": "a", "rejected": "z"}, ASKED),
    (
        "pair with a message each",
        {
            "messages": [{"role": "system", "content": "Be brief."}, USER],
            "chosen": ANSWER,
            "rejected": {**ANSWER, "content": "z"},
        },
        BRIEF,
    ),
    (
        "pair of llama-factory",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "z"},
        },
        ASKED,
    ),
    (
        "pair with an empty input",
        {"system": "Be brief.", "input": "", "question": "q", "chosen": "a", "rejected": "z"},
        BRIEF,
    ),
    (
        "pair with instruction and input",
        {"instruction": "q", "input": "Facts.", "chosen": "a", "rejected": "z"},
        [("user", "q\n\nFacts."), ASKED[1]],
    ),
    (
        "pair whose prompt has a system",
        {
            "prompt": [{"role": "system", "content": "Be brief."}, USER],
            "chosen": [USER, ANSWER],
            "rejected": [USER, {**ANSWER, "content": "z"}],
        },
        BRIEF,
    ),
    (
        "pair with the answer in messages too",
        {
            "prompt": "q",
            "messages": [USER, ANSWER],
            "chosen": [USER, ANSWER],
            "rejected": [USER, {**ANSWER, "content": "z"}],
        },
        ASKED,
    ),
    ("spoken prompt", {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " z"}, ASKED),
    (
        "capybara",
        {"conversation": [{"input": "q", "output": "a"}, {"input": "q2", "output": "a2"}]},
        [*ASKED, ("user", "q2"), ("assistant*", "a2")],
    ),
    ("human and assistant in one object", {"conversations": [{"human": "q", "assistant": "a"}]}, ASKED),
    ("other assistants", {"conversations": [{"from": "human", "value": "q"}, {"from": "bing", "value": "a"}]}, ASKED),
    ("speakers", {"dialog": [{"speaker": "User", "text": "q"}, {"speaker": "Assistant", "text": "a"}]}, ASKED),
    (
        "gemini with an instruction",
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
            "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
        },
        BRIEF,
    ),
    ("flan", {"inputs": "q", "targets": "a", "task": "t"}, ASKED),
    ("both in a rendered prompt", {"instruction": "q", "input": "", "output": "a", "prompt": "### q\n### a"}, ASKED),
    (
        "parts with notes of the service",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {}}]}, ANSWER]},
        ASKED,
    ),
    ("an answer of nothing to see", {"prompt": "q", "completion": "\u200b"}, [("user", "q"), ("assistant", "\u200b")]),
    ("passage", {"passage": "Facts.", "question": "q", "answer": "a"}, [("user", "q\n\nFacts."), ASKED[1]]),
    (
        "chat history",
        {"instruction": "q", "output": "a", "chat_history": [["q0", "a0"]]},
        [("user", "q0"), ("assistant*", "a0"), *ASKED],
    ),
    ("trl as json text", {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])}, ASKED),
    (
        "pair of llama-factory as json text",
        {
            "conversations": json.dumps([{"from": "human", "value": "q"}]),
            "chosen": json.dumps({"from": "gpt", "value": "a"}),
            "rejected": json.dumps({"from": "gpt", "value": "z"}),
        },
        ASKED,
    ),
    (
        "an answer in json that is no message",
        {"prompt": "q", "completion": '{"from": "Oslo", "text": "Bergen"}'},
        [ASKED[0], ("assistant*", '{"from": "Oslo", "text": "Bergen"}')],
    ),
    ("undesirable", {"prompt": "q", "completion": "a", "label": "undesirable"}, [("user", "q"), ("assistant", "a")]),
    ("a label below zero", {"prompt": "q", "completion": "a", "label": -1}, [("user", "q"), ("assistant", "a")]),
    ("numbers", {"question": 3, "answer": True}, [("user", "3"), ("assistant*", "true")]),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_a_shape_is_read_whole(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(row) == expected


@pytest.mark.parametrize(
    "flags", [{"train": False}, {"weight": 0}, {"weight": 0.0}, {"loss": "false"}, {"training": 0}]
)
@pytest.mark.parametrize("keys", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_flags_of_turns_are_obeyed(flags: dict[str, Any], keys: tuple[str, str, str, str]) -> None:
    role, content, user, assistant = keys
    row = {
        "conversations": [
            {role: user, content: "q"},
            {role: assistant, content: "a", **flags},
            {role: user, content: "q"},
            {role: assistant, content: "b"},
        ]
    }
    assert [said for said, _ in turns(row)] == ["user", "assistant", "user", "assistant*"]


FUNCTION = {"name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                {"role": "function", "name": "f", "content": "2"},
            ],
            "functions": [FUNCTION],
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]},
                {"role": "tool", "content": "2"},
            ],
            "tools": [FUNCTION],
        },
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "2"},
            ],
            "tools": json.dumps([FUNCTION]),
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}],
                },
                {"role": "tool", "content": "2"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
        },
    ],
)
def test_calls_of_tools_are_read_from_every_way_of_writing_them(row: dict[str, Any]) -> None:
    example = to_example(row, 1, detect_format([row]))
    assert [message.role for message in example.messages] == ["user", "assistant", "tool"]
    assert example.messages[1].extra == {"tool_calls": [CALL]}
    assert (example.messages[1].content, example.messages[1].trained) == ("", True)
    assert example.tools == ({"type": "function", "function": FUNCTION},)


def test_tools_beside_the_messages_of_a_pair_are_read_and_other_fields_told() -> None:
    row = {
        "input": {"messages": [USER], "tools": [FUNCTION], "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": [{**ANSWER, "content": "z"}],
    }
    example = to_example(row, 1, detect_format([row]))
    assert example.tools == ({"type": "function", "function": FUNCTION},)
    assert [code for code, _ in example.notices] == ["prompt_field_not_read"]
    assert "'parallel_tool_calls'" in example.notices[0][1]


@pytest.mark.parametrize("thought", [{"type": "thinking", "thinking": "Hm."}, {"text": "Hm.", "thought": True}])
def test_reasoning_parts_are_kept_apart_from_the_answer(thought: dict[str, Any]) -> None:
    parts = [thought, {"type": "text", "text": "a"}]
    row = {"messages": [USER, {"role": "assistant", "content": parts}]}
    answer = to_example(row, 1, detect_format([row])).messages[1]
    assert (answer.content, answer.extra) == ("a", {"reasoning_content": "Hm."})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q"}, "prompts without answers"),
        ({"prompt": "q", "id": "x"}, "prompts without answers"),
        ({"prompt": "q", "completions": ["s1", "s2"], "labels": [True, False]}, "process reward"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]}, "several answers"),
        ({"instruction": "q", "models": ["x"], "completions": [{"response": "a"}]}, "several answers"),
        ({"role": "user", "content": "q"}, "single message"),
        ({"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "lang": "en"}, "OpenAssistant"),
        ({"message_tree_id": "1", "prompt": {"text": "q", "role": "prompter", "replies": []}}, "OpenAssistant"),
        ({"id": "1", "story": "Once."}, "'story'"),
        ({"story": "Once."}, "'story'"),
        ({"frage": "q", "antwort": "a"}, '"completion": "antwort"'),
        ({"content": "Once."}, "'content'"),
        ({"text": "I like it.", "label": "positive"}, "'label'"),
        ({"dialog": ["q", "a"], "act": [1, 2]}, '"columns": {"messages": "dialog"}'),
        ({"segments": [{"label": True, "text": "a"}]}, "segments"),
        ({"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}}, "several answers"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}, "multiple-choice"),
        ({"question": "q", "options": ["a", "b"], "answer": "B"}, "multiple-choice"),
        ({"id": "1", "conversations": str([{"from": "human", "value": "q"}])}, "as Python prints them"),
        ({"custom_id": "1", "body": {"messages": [USER]}}, "recorded requests"),
    ],
)
def test_what_is_not_known_is_refused_with_what_to_do(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        detect_format([row, row])
    assert caught.value.code == "unknown_format"
    assert said in caught.value.message
    assert '{"' in caught.value.message  # how to write it


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"data": [{"prompt": "q", "completion": "a"}]}, "its rows are in 'data'"),
        ({"prompt": ["q", "q2"], "completion": ["a", "a2"]}, "whole columns"),
        ({"prompt": {"0": "q"}, "completion": {"0": "a"}}, "whole columns"),
    ],
)
def test_a_file_of_one_object_says_where_its_rows_are(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        detect_format([row])
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, USER, ANSWER]}, "differ"),
        ({"messages": [USER, ANSWER], "images": ["cat.png"]}, "media"),
        ({"prompt": "q", "completion": "a", "Image": "cat.png"}, "media"),
        ({"prompt": "q", "completion": "a", "image_path": "cat.png"}, "media"),
        ({"messages": str([USER, ANSWER])}, "as Python prints it"),
        ({"input": [{"label": False, "text": "q"}], "output": "a"}, "'label'"),
        (
            {"messages": [USER, {"Role": "assistant", "Content": "a"}]},
            "the message has 'Role', 'Content'",
        ),
        ({"text": "a cat", "image": {"bytes": "…", "path": None}}, "media"),
        ({"prompt": "q", "completion": ["a", "b"]}, "2 texts"),
        ({"prompt": " ", "completion": "a"}, "blank"),
        ({"chosen": "a", "rejected": "z"}, "no prompt"),
        ({"prompt": "other", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "does not begin with"),
        ({"messages": [{**USER, "train": True}, ANSWER]}, "asks to train"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "0.5"),
        ({"prompt": "q", "completion": "a", "history": [["only one"]]}, "no pair"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f(x)"}]}, "no call"),
        ({"prompt": "q", "completion": float("nan")}, "not a number"),
        ({"prompt": "q", "completion": "a", "system": {"be": "brief"}}, "an object"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1, "x": 2}'}]}]},
            "messages[1].tool_calls[0].arguments has the key 'x' twice",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x":{"y":1,"y":2}}'}},
                ]
            },
            "'y' twice",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name":"f","name":"g"}'},
                ]
            },
            "'name' twice",
        ),
        (
            {"messages": '[{"role": "user", "content": "q", "content": "z"}, {"role": "assistant", "content": "a"}]'},
            "'content' twice",
        ),
        ({"messages": [USER, ANSWER], "tools": '[{"name": "f", "name": "g"}]'}, "'name' twice"),
        (
            {"prompt": "q", "completion": "a", "history": '[{"role": "user", "role": "tool", "content": "q"}]'},
            "'role' twice",
        ),
    ],
)
def test_a_row_that_cannot_be_read_whole_is_an_error(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError) as caught:
        to_example(row, 5, detect_format([row]))
    assert said in caught.value.problem
    assert caught.value.row == 5


def test_a_column_counts_that_one_row_of_a_thousand_uses(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"q{i}", "output": "a"} for i in range(1000)]
    rows[700] |= {"input": "Facts.", "system": "Be brief.", "history": [["q0", "a0"]]}
    path = tmp_path / "x"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect_file(path)
    assert found.require_format().columns.keys() == {"instruction", "output", "input", "system", "history"}
    assert turns(rows[700], rows[0])[-2:] == [("user", "q700\n\nFacts."), ("assistant*", "a")]
    example = to_example(rows[700], 701, detect_format(rows[:100]))
    assert [message.content for message in example.messages] == ["Be brief.", "q0", "a0", "q700\n\nFacts.", "a"]


def test_a_column_mapped_to_nothing_is_not_read() -> None:
    row = {"prompt": "q", "completion": "a", "system": "s", "label": 2, "context": "Facts."}
    data_format = detect_format([row])
    mapped = {**data_format.columns, "system": "", "context": ""}
    example = to_example(row, 1, type(data_format)(data_format.shape, data_format.kind, mapped))
    assert [message.content for message in example.messages] == ["q", "a"]


def test_undesired_answers_are_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    rows = [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "a", "label": False},
        {"prompt": "q", "completion": "b", "label": False},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect_file(path)
    assert [(notice.code, notice.rows, notice.first_row) for notice in found.notices] == [
        ("undesired_answers", 2, 2),
    ]
    assert found.untrainable_rows == 2


def test_tools_and_weights_tell_rows_apart(tmp_path: Path) -> None:
    path = tmp_path / "x"
    rows: list[dict[str, Any]] = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER], "tools": [FUNCTION]},
        {"messages": [USER, ANSWER], "tools": [{**FUNCTION, "name": "g"}]},
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        {"messages": [USER, {**ANSWER, "weight": 1}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert inspect_file(path).duplicate_rows == (5,)


@pytest.mark.parametrize(
    ("row", "is_known"),
    [({"prompt": "q"}, True), ({"conversations": str([USER])}, True), ({"frage": "q", "antwort": "a"}, False)],
)
def test_a_shape_that_is_known_is_told_from_columns_to_be_mapped(
    tmp_path: Path, row: dict[str, Any], is_known: bool
) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps(row) + "\n")
    found = inspect_file(path)
    assert (found.data_format, found.is_known_shape) == (None, is_known)
