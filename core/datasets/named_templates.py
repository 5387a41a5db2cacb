"""Chat templates of our own, for models that come without one. Which one a run uses is published with its result.

A template may only end a turn with a token at which the model's servers stop, and may only use special tokens that the
vocabulary has: a token that pretraining never saw has an embedding that adapters do not train.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from core.datasets.examples import DataFormat, DataKind
from core.datasets.templates import TemplateSource
from core.datasets.tokenizer_files import MORE_TEMPLATES, TEMPLATE_FILE, TokenizerFiles, read_json
from core.errors import InvalidRequestError

__all__ = ["NAMED_TEMPLATES", "choose_template", "is_shipped", "named_template", "publish_template", "usable_templates"]


@dataclass(frozen=True)
class NamedTemplate:
    """A template's source, the tokens it needs, and the one of them that ends a turn; EOS where it needs none."""

    name: str
    source: str
    tokens: tuple[str, ...] = ()
    end_of_turn: str | None = None


# Without {% generation %}, which only transformers knows: other servers read these templates too.
_START = (
    "{% for message in messages %}{% if tools or message.tool_calls %}"
    "{{ raise_exception('the default templates know no tools') }}{% endif %}"
)
_CHATML = NamedTemplate(
    "chatml",
    _START + "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
)
_LLAMA3 = NamedTemplate(
    "llama3",
    "{{ bos_token | default('') }}" + _START + "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    "{{ message.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)
# Its marks of roles are ordinary text to most tokenizers, so it works with all of them.
_ZEPHYR = NamedTemplate(
    "zephyr",
    "{{ bos_token | default('') }}"
    + _START
    + "{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
)
NAMED_TEMPLATES: Mapping[str, NamedTemplate] = {one.name: one for one in (_CHATML, _LLAMA3, _ZEPHYR)}


def choose_template(files: TokenizerFiles, data_format: DataFormat, asked: str | None) -> str | None:
    """The named template that renders rows of this format, or None where rows go with the model's own or without any.

    A model's own template comes first. Where there is none, prompts with completions and texts stay as they are
    written, and turns go with the first named template that the model can read and stops at. `asked` overrides both.
    Raises InvalidRequestError (`chat_template_not_usable`) where the tokenizer lacks what the one asked for needs.
    """
    if asked is not None:
        problem = _problem(NAMED_TEMPLATES[asked], files)
        if problem:
            usable = " or ".join(usable_templates(files))
            raise InvalidRequestError(
                f"The chat template {asked!r} cannot be used with this model: {problem}. Use {usable}.",
                code="chat_template_not_usable",
                param="chat_template",
            )
        return asked
    stays_plain = data_format.kind is DataKind.TEXT or (
        data_format.shape == "prompt_completion"
        and data_format.kind is DataKind.COMPLETION
        and "system" not in data_format.columns
    )
    if files.template is not None or stays_plain:
        return None
    return next(name for name, template in NAMED_TEMPLATES.items() if not _problem(template, files))


def _problem(template: NamedTemplate, files: TokenizerFiles) -> str:
    """Why the template cannot be used with the tokenizer; "" where it can."""
    missing = [token for token in template.tokens if token not in files.special_tokens]
    if missing:
        return f"its vocabulary has no {', '.join(missing)}"
    end = template.end_of_turn
    if end is not None and files.tokenizer.token_to_id(end) not in files.stop_token_ids:
        return f"neither its eos_token nor its generation_config.json is {end}, so servers would not stop there"
    return ""


def usable_templates(files: TokenizerFiles) -> list[str]:
    """The names of our templates that the tokenizer has the tokens for."""
    return [name for name, template in NAMED_TEMPLATES.items() if not _problem(template, files)]


def named_template(name: str, files: TokenizerFiles) -> TemplateSource:
    """The template of this name with the tokenizer's special tokens, `eos_token` among them."""
    eos_token = files.tokenizer.id_to_token(files.eos_token_id) or ""
    tokens = {**files.named_tokens, "eos_token": eos_token}
    return TemplateSource(NAMED_TEMPLATES[name].source, tokens, name=name)


def is_shipped(template: TemplateSource) -> bool:
    """Whether its text is one of ours, so that nobody else's code runs where it is rendered."""
    return template.tool_use is None and template.text in {one.source for one in NAMED_TEMPLATES.values()}


def publish_template(name: str, directory: Path) -> None:
    """Make `directory`, which holds a tokenizer, one with this template: transformers and servers then use it."""
    (directory / TEMPLATE_FILE).write_text(NAMED_TEMPLATES[name].source, encoding="utf-8")
    shutil.rmtree(directory / MORE_TEMPLATES, ignore_errors=True)
    path = directory / "tokenizer_config.json"
    config = read_json(path)
    if config.pop("chat_template", None) is not None:
        path.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
