"""What the rows of a file mean, told from their columns. What cannot be told is refused with how to say it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.datasets.columns import USUAL_COLUMNS, columns_by_name, listed, plain_name
from core.datasets.conversations import as_alternating, as_exchanges, is_turn, turns_in
from core.datasets.examples import DataFormat, DataKind
from core.datasets.known_shapes import KnownShapeError, problem_of_unread, problem_of_untrainable
from core.datasets.pairs import PAIR_ROLES
from core.datasets.preferences import PREFERENCE, detect_preferences
from core.datasets.values import as_list, read_label
from core.errors import InvalidDatasetError

__all__ = ["complete_format", "detect_format", "known_names"]

# Pairs of columns that mean a prompt and its completion, most specific first.
_PAIRS: tuple[tuple[str, str, str], ...] = (
    ("prompt_completion", "prompt", "completion"),
    ("question_answer", "question", "answer"),
    ("alpaca", "instruction", "output"),  # before a `prompt` beside it, which holds both, rendered
    ("prompt_completion", "prompt", "response"),
    ("prompt_completion", "prompt", "output"),
    ("prompt_completion", "prompt", "answer"),
    ("prompt_completion", "instruction", "response"),
    ("prompt_completion", "instruction", "completion"),
    ("prompt_completion", "instruction", "answer"),
    ("question_answer", "query", "answer"),
    ("question_answer", "query", "response"),
    ("question_answer", "question", "response"),
    ("question_answer", "question", "output"),
    ("prompt_completion", "input", "output"),
    ("prompt_completion", "input", "response"),
    ("prompt_completion", "input", "completion"),
    ("prompt_completion", "input", "target"),
    ("prompt_completion", "inputs", "targets"),
    ("prompt_completion", "user", "assistant"),
    ("prompt_completion", "human", "assistant"),
    ("prompt_completion", "source", "target"),
    ("prompt_completion", "document", "summary"),
    ("prompt_completion", "article", "summary"),
    ("prompt_completion", "article", "highlights"),
    ("prompt_completion", "dialogue", "summary"),
    ("prompt_completion", "text", "summary"),
    ("prompt_completion", "prompt", "text"),
)
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns", "contents")
_TARGETS = frozenset(
    {
        "summary", "highlights", "abstract", "headline", "label", "labels", "target", "targets", "answer", "answers",
        "output", "outputs", "response", "responses", "completion", "completions", "translation", "sentiment",
        "intent", "class", "category", "tag", "tags", "emotion",
    }
)  # fmt: skip
# Beside a prompt, a column that holds an answer or all of the conversation.
_ANSWERED = _TARGETS.union(_CONVERSATIONS, (second for _, _, second in _PAIRS))
_HELP = (
    'Use {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    'or {"prompt": "...", "completion": "..."}, or {"text": "..."}, or say which columns to use with `format`, such as '
    '{"shape": "prompt_completion", "columns": {"prompt": %s, "completion": %s}}.'
)


def known_names() -> frozenset[str]:
    """Plain names of columns whose meaning is known."""
    pairs = {name for _, first, second in _PAIRS for name in (first, second)}
    usual = {name for names in USUAL_COLUMNS.values() for name in names}
    return frozenset({*pairs, *usual, *_CONVERSATIONS, *_TARGETS, "text", "content", "chosen", "rejected", "tools"})


def detect_format(rows: Sequence[Mapping[str, Any]]) -> DataFormat:
    """The layout of `rows`, a sample from the start of a file, by its columns' names.

    Raises InvalidDatasetError (`unknown_format`) that names the columns found and says how to say what they mean.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    by_name = columns_by_name(name for name in columns if any(row.get(name) is not None for row in rows))
    found = detect_preferences(rows, by_name)
    if found is None:
        is_pair = any(first in by_name and second in by_name for _, first, second in _PAIRS)
        if problem := problem_of_untrainable(rows, by_name, _ANSWERED, is_pair=is_pair):
            raise KnownShapeError(problem, code="unknown_format")
        found = _conversation_or_pair(rows, by_name)
    if found is None:
        found = _detect_text(by_name)
    if found is None:
        if problem := problem_of_unread(rows, by_name, _CONVERSATIONS):
            raise KnownShapeError(problem, code="unknown_format")
        first, second = ([*columns, "", ""])[:2]
        how = _HELP % (f'"{first[:60]}"' if first else '"..."', f'"{second[:60]}"' if second else '"..."')
        raise _unknown(f"What the rows mean could not be told from their columns ({listed(columns)}). {how}")
    return _with_label(rows, complete_format(found, columns))


def complete_format(data_format: DataFormat, columns: Collection[str]) -> DataFormat:
    """The format with what its rows have beside their shape: a system prompt, an input, a context, earlier turns."""
    if data_format.kind is DataKind.TEXT:
        return data_format
    is_asked = data_format.shape in PAIR_ROLES or data_format.shape == PREFERENCE
    by_name = columns_by_name(columns)
    mapped = dict(data_format.columns)
    for role in ("system", "input", "context", "history") if is_asked else ("system",):
        column = next((by_name[name] for name in USUAL_COLUMNS[role] if name in by_name), None)
        if column is not None and column not in mapped.values():
            mapped.setdefault(role, column)
    return replace(data_format, columns=mapped)


def _with_label(rows: Sequence[Mapping[str, Any]], data_format: DataFormat) -> DataFormat:
    """The format with the label of desired answers, where all of the labels are true, false, 1 or 0."""
    if data_format.kind is DataKind.TEXT or data_format.shape == PREFERENCE:
        return data_format
    for column in USUAL_COLUMNS["label"]:
        labels = [row[column] for row in rows if row.get(column) is not None]
        if labels and all(read_label(label) is not None for label in labels):
            return replace(data_format, columns={**data_format.columns, "label": column})
    return data_format


def _conversation_or_pair(rows: Sequence[Mapping[str, Any]], by_name: Mapping[str, str]) -> DataFormat | None:
    pair = _detect_pair(rows, by_name)
    named = [by_name[name] for name in _CONVERSATIONS if name in by_name]
    if pair is not None:
        return _detect_conversation(rows, named) or pair if pair.kind is not DataKind.CHAT else pair
    beside = {by_name[name] for names in USUAL_COLUMNS.values() for name in names if name in by_name}
    found = _detect_conversation(rows, [*named, *(name for name in by_name.values() if name not in beside)])
    if found is None and "messages" in by_name:
        return DataFormat("messages", DataKind.CHAT, {"messages": by_name["messages"]})
    if found is None and "data" in by_name and all(as_alternating(row.get(by_name["data"])) for row in rows):
        return DataFormat("messages", DataKind.CHAT, {"messages": by_name["data"]})
    return found


def _detect_conversation(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> DataFormat | None:
    for column in columns:
        values = (as_list(row.get(column)) for row in rows)
        is_named = plain_name(column) in _CONVERSATIONS
        turns = next((turns for turns in values if turns and _are_turns(turns, is_named)), None)
        if turns is None:
            continue
        if "from" not in turns[0]:
            return DataFormat("messages", DataKind.CHAT, {"messages": column})
        return DataFormat("sharegpt", DataKind.CHAT, {"conversations": column})
    return None


def _are_turns(turns: list[Any], is_named: bool) -> bool:
    """Whether a list is a conversation; one of questions with answers only where its column says so."""
    return is_turn(turns[0]) or (is_named and as_exchanges(turns) is not None)


def _detect_pair(rows: Sequence[Mapping[str, Any]], by_name: Mapping[str, str]) -> DataFormat | None:
    for shape, first, second in _PAIRS:
        if first in by_name and second in by_name:
            roles = PAIR_ROLES[shape]
            columns = {roles[0]: by_name[first], roles[1]: by_name[second]}
            kind = DataKind.CHAT if _holds_turns(rows, columns.values()) else DataKind.COMPLETION
            return DataFormat(shape, kind, columns)
    return None


def _holds_turns(rows: Sequence[Mapping[str, Any]], columns: Collection[str]) -> bool:
    """Whether one of the columns holds messages, as TRL's conversational prompts and completions do."""
    return any(turns_in(row.get(column)) is not None for row in rows for column in columns)


def _detect_text(by_name: Mapping[str, str]) -> DataFormat | None:
    """Raw text: a column `text` that no other column could be the answer to."""
    if "text" not in by_name:
        return None
    targets = [by_name[name] for name in by_name if name in _TARGETS]
    if targets:
        prompt, target = by_name["text"], targets[0][:60]
        raise _unknown(
            f"Beside the column {by_name['text']!r} there is {listed(targets)}: whether it is what the model should "
            'learn to answer is not known. Say it with `format`: {"shape": "prompt_completion", "columns": '
            f'{{"prompt": "{prompt}", "completion": "{target}"}}}}, or {{"shape": "text"}} to train the text alone.'
        )
    return DataFormat("text", DataKind.TEXT, {"text": by_name["text"]})


def _unknown(message: str) -> InvalidDatasetError:
    return InvalidDatasetError(message, code="unknown_format")
