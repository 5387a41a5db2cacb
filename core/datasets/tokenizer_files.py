"""A model's tokenizer files, read as transformers reads them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import AddedToken, Tokenizer

from core.datasets.templates import TemplateSource
from core.errors import InvalidModelError

__all__ = ["TEMPLATE_FILE", "TokenizerFiles", "read_json", "read_tokenizer_files"]

TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder of others by name, as transformers saves them

_SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say. `special_tokens` are texts, longest first; `stop_token_ids` end a generated turn.

    `named_tokens` are those that templates may name: `bos_token`, `eos_token`, ...
    """

    tokenizer: Tokenizer
    template: TemplateSource | None
    special_tokens: tuple[str, ...]
    named_tokens: Mapping[str, str]
    eos_token_id: int
    pad_token_id: int
    stop_token_ids: frozenset[int]


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read the files. Raises InvalidModelError where there is no usable `tokenizer.json` or no EOS token."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InvalidModelError(
            f"The model {directory.name!r} has no tokenizer.json. Save its tokenizer with transformers' "
            "AutoTokenizer.save_pretrained, which writes one.",
            code="no_tokenizer",
        )
    config = read_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # files from before transformers 4.34 keep the tokens apart
        config = {**config, **read_json(directory / "special_tokens_map.json")}
    named = {key: _token_text(value) for key, value in config.items() if key.endswith("_token") and _token_text(value)}
    tokenizer = _load_tokenizer(path)
    _add_missing_tokens(tokenizer, config, named)
    stop_token_ids = _stop_token_ids(directory)
    eos = tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None
    eos = eos if eos is not None else next(iter(stop_token_ids), None)
    if eos is None:
        raise InvalidModelError(
            f"The model {directory.name!r} names no end-of-sequence token. Set eos_token in its tokenizer_config.json.",
            code="no_eos_token",
        )
    pad = tokenizer.token_to_id(named["pad_token"]) if "pad_token" in named else None
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    sources = _template_sources(directory, config)
    return TokenizerFiles(
        tokenizer=tokenizer,
        template=_chosen(sources, named),
        special_tokens=tuple(sorted(special, key=len, reverse=True)),
        named_tokens=named,
        eos_token_id=eos,
        pad_token_id=eos if pad is None else pad,
        stop_token_ids=frozenset({eos, *stop_token_ids}),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none. Raises InvalidModelError."""
    if not path.is_file():
        return {}
    try:
        data = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InvalidModelError(f"{path.name} of the model is not valid JSON: {error}.") from error
    return data if isinstance(data, dict) else {}


def _token_text(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer, without truncation and padding, and with offsets that keep the blanks of a token."""
    data = read_json(path)
    data["truncation"] = data["padding"] = None
    for processor in _objects(data.get("post_processor")):
        if "trim_offsets" in processor:
            processor["trim_offsets"] = (
                False  # changes offsets only; trimmed ones hide which side of an edge blanks are on
            )
    try:
        tokenizer: Tokenizer = Tokenizer.from_buffer(orjson.dumps(data))
    except (ValueError, TypeError) as error:
        raise InvalidModelError(f"tokenizer.json of the model cannot be read: {error}.") from error
    return tokenizer


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _objects(child)
    elif isinstance(value, list):
        for child in value:
            yield from _objects(child)


def _add_missing_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Register what only tokenizer_config.json knows, in the order of ids, as transformers does on loading."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, Mapping) or not all(str(token_id).isdecimal() for token_id in listed):
        raise InvalidModelError(
            "added_tokens_decoder in tokenizer_config.json of the model does not map ids to tokens."
        )
    tokens = [
        AddedToken(
            data["content"],
            single_word=bool(data.get("single_word")),
            lstrip=bool(data.get("lstrip")),
            rstrip=bool(data.get("rstrip")),
            normalized=bool(data.get("normalized", True)),
            special=bool(data.get("special")),
        )
        for _, data in sorted(listed.items(), key=lambda item: int(item[0]))
        if isinstance(data, Mapping) and _token_text(data)
    ]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, Mapping) else extra if isinstance(extra, list) else []
    names = [*(named[role] for role in _SPECIAL_ROLES if role in named), *filter(None, map(_token_text, extra))]
    tokens += [AddedToken(name, special=True, normalized=False) for name in names]
    for token in tokens:
        if token.content not in known:
            known.add(token.content)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _stop_token_ids(directory: Path) -> tuple[int, ...]:
    """EOS ids of generation_config.json and config.json, in that order."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(directory / name).get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found += [one for one in values if isinstance(one, int)]
    return tuple(dict.fromkeys(found))


def _template_sources(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: the files of their own first, then the configuration, which may hold several."""
    files = {path.stem: path for path in sorted((directory / MORE_TEMPLATES).glob("*.jinja"))}
    if (directory / TEMPLATE_FILE).is_file():
        files["default"] = directory / TEMPLATE_FILE
    if files:
        return {name: _read_template(path) for name, path in files.items()}
    source = config.get("chat_template")
    if isinstance(source, list):
        listed = [(one.get("name"), one.get("template")) for one in source if isinstance(one, Mapping)]
        return {name: text for name, text in listed if isinstance(name, str) and isinstance(text, str)}
    return {"default": source} if isinstance(source, str) else {}


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidModelError(
            f"{path.name} of the model is not UTF-8: {error}.", code="invalid_chat_template"
        ) from error


def _chosen(sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> TemplateSource | None:
    """The default template, and the one for rows with tools; as transformers takes them from those with names."""
    default, tool_use = sources.get("default"), sources.get("tool_use")
    if not default:
        return TemplateSource(tool_use, special_tokens) if tool_use and len(sources) == 1 else None
    return TemplateSource(default, special_tokens, tool_use=tool_use)
