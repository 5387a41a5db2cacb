"""A template of a stranger that hangs, grows or breaks is the model's error, and runs in a limited child only."""

import os
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from core.datasets.encoding import load_encoder
from core.datasets.examples import Example, Message
from core.datasets.row_errors import RowError
from core.errors import InvalidModelError
from tests.unit.datasets.template_shapes import CHATML

MakeDirectory = Callable[..., Path]


def rows(count: int) -> list[Example]:
    turns = (Message("user", "How?", trained=False), Message("assistant", "So.", trained=True))
    return [Example(number, turns) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ 3 ** (2 ** 30) }}", "more than 10 s of CPU time"),
        ("{% for m in messages %}{{ m.content * 2000000000 }}{% endfor %}", "MiB of memory"),
    ],
    ids=["power", "memory"],
)
def test_a_template_that_needs_too_much_is_the_models_error(
    model_directory: MakeDirectory, source: str, says: str
) -> None:
    with pytest.raises(InvalidModelError) as caught:
        list(load_encoder(model_directory(CHATML, source)).encode_batch(rows(3)))
    assert (caught.value.code, caught.value.param) == ("chat_template_too_demanding", "model")
    assert says in caught.value.message


def test_the_row_that_grows_beyond_measure_is_named(model_directory: MakeDirectory) -> None:
    source = CHATML.source + "{% if 'much' in messages[0].content %}{{ 'a' * 4000000 }}{% endif %}"
    encoder = load_encoder(model_directory(CHATML, source))
    grown = Example(7, (Message("user", "much", trained=False), Message("assistant", "So.", trained=True)))
    assert [len(one.input_ids) > 5 for one in encoder.encode_batch(rows(2))] == [True, True]
    with pytest.raises(InvalidModelError, match="characters of row 7") as caught:
        list(encoder.encode_batch([*rows(2), grown]))
    assert caught.value.code == "chat_template_too_demanding"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% include 'passwords' %}{{ 1 | no_such_filter }}",
        "{% set a = 1 %}{% continue %}",
        "{% macro a(b, b) %}{% endmacro %}",
    ],
    ids=["open", "deep", "filter", "continue", "names"],
)
def test_a_template_that_does_not_compile_is_the_models_error(model_directory: MakeDirectory, source: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        list(load_encoder(model_directory(CHATML, source)).encode_batch(rows(1)))
    assert caught.value.code in ("invalid_chat_template", "chat_template_too_demanding")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[9].content + 1 }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ messages | tojson(indent='x', separators=3) }}",
        "{{ 1 // 0 }}",
        "{% include 'passwords' %}",
        "{{ '\\ud800' }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
    ],
    ids=["undefined", "recursion", "type", "zero", "include", "surrogate", "range", "sandbox"],
)
def test_a_template_that_fails_on_a_row_rejects_it(model_directory: MakeDirectory, source: str) -> None:
    with pytest.raises(RowError) as caught:
        list(load_encoder(model_directory(CHATML, source)).encode_batch(rows(2)))
    assert (caught.value.row, caught.value.code) == (1, "template_rejected")


def test_a_template_of_a_stranger_runs_in_another_process(model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML, CHATML.source + "{{ 0 * (1 / messages | length) }}"))
    assert len(list(encoder.encode_batch(rows(1)))) == 1
    lists = [task / "children" for task in Path(f"/proc/{os.getpid()}/task").iterdir()]
    children = [child for one in lists for child in one.read_text().split()]
    assert any(b"core.limited.child" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


def test_a_template_file_that_is_not_text_is_the_models_error(model_directory: MakeDirectory) -> None:
    directory = model_directory(CHATML)
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe{{ 1 }}")
    with pytest.raises(InvalidModelError) as caught:
        load_encoder(directory)
    assert caught.value.code == "invalid_chat_template"


@pytest.mark.parametrize("folder", [False, True], ids=["configuration", "files"])
def test_rows_with_tools_take_the_template_for_them(model_directory: MakeDirectory, folder: bool) -> None:
    directory = model_directory(CHATML, None)
    for_tools = "{{ tools | tojson }}" + CHATML.source.replace("m['content']", "(m['content'] or m['calls'] | tojson)")
    if folder:
        (directory / "chat_template.jinja").write_text(CHATML.source)
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text(for_tools)
    else:
        config = orjson.loads((directory / "tokenizer_config.json").read_bytes())
        both = {"default": CHATML.source, "tool_use": for_tools}
        config["chat_template"] = [{"name": name, "template": text} for name, text in both.items()]
        (directory / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    encoder = load_encoder(directory)
    [plain] = rows(1)
    with_tools = Example(1, plain.messages, tools=({"name": "track"},))
    assert "".join(text for text, _ in encoder.segments(plain)).startswith("<|im_start|>user")
    assert "".join(text for text, _ in encoder.segments(with_tools)).startswith('[{"name": "track"}]<|im_start|>user')


def configured(directory: Path, **fields: object) -> Path:
    config = orjson.loads((directory / "tokenizer_config.json").read_bytes())
    (directory / "tokenizer_config.json").write_bytes(orjson.dumps({**config, **fields}))
    return directory


@pytest.mark.parametrize("listed", [{"first": {"content": "<a>"}}, [1, 2]], ids=["names", "list"])
def test_tokens_without_ids_are_the_models_error(model_directory: MakeDirectory, listed: object) -> None:
    with pytest.raises(InvalidModelError) as caught:
        load_encoder(configured(model_directory(CHATML), added_tokens_decoder=listed))
    assert caught.value.code == "invalid_model"


@pytest.mark.parametrize(
    "fields",
    [
        {"added_tokens_decoder": {"0": {"content": 7}}, "extra_special_tokens": 9},
        {"chat_template": 7},
        {"chat_template": [{"name": ["default"], "template": "{{ 1 }}"}, 4]},
    ],
    ids=["numbers", "template", "templates"],
)
def test_fields_of_other_types_are_passed_over(model_directory: MakeDirectory, fields: dict[str, object]) -> None:
    assert not load_encoder(configured(model_directory(CHATML, None), **fields)).has_chat_template
