"""Examples to token ids, exactly as transformers makes them, with what is trained known token by token."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, tee
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from core.datasets.examples import DataFormat, EncodedExample, Example, Message, RowNote
from core.datasets.formats import RowError
from core.datasets.named_templates import choose_template, named_template, usable_templates
from core.datasets.renderers import Renderer
from core.datasets.rendering import ANSWER_LOST
from core.datasets.spans import Rendering, SpecialTokens, TurnProbe
from core.datasets.templates import template_message
from core.datasets.tokenizer_files import TokenizerFiles, read_tokenizer_files
from core.errors import InvalidRequestError

__all__ = ["Encoder", "Segment", "load_encoder", "resolve_template"]

_BATCH = 256
_BATCH_CHARACTERS = 16 * 1024**2
Segment = tuple[str, bool]  # a stretch of text, and whether it is trained


def load_encoder(tokenizer_directory: Path, chat_template: str | None = None) -> "Encoder":
    """The encoder of the model in `tokenizer_directory`, with its own chat template or one of `NAMED_TEMPLATES`.

    Reads `tokenizer.json`, and where present `tokenizer_config.json`, `chat_template.jinja`,
    `special_tokens_map.json`, `config.json` and `generation_config.json`. Raises InvalidModelError.
    """
    return Encoder(read_tokenizer_files(tokenizer_directory), chat_template)


def resolve_template(tokenizer_directory: Path, data_format: DataFormat, asked: str | None) -> str | None:
    """The name for `load_encoder` with which rows of this format are rendered: see `choose_template`."""
    return choose_template(read_tokenizer_files(tokenizer_directory), data_format, asked)


@dataclass(frozen=True)
class _Prepared:
    """An example as text. `splits_at`: where a prompt without template ends and its completion begins."""

    row: int
    rendering: Rendering
    adds_special_tokens: bool
    splits_at: int | None = None
    notes: tuple[RowNote, ...] = ()


class Encoder:
    """A tokenizer with its chat template. Safe to share between threads; give each process its own."""

    def __init__(self, files: TokenizerFiles, chat_template: str | None = None) -> None:
        self._files = files
        self._tokenizer: Tokenizer = files.tokenizer
        self.chat_template_name = chat_template
        self.eos_token_id: int = files.eos_token_id
        self.pad_token_id: int = files.pad_token_id
        self.vocab_size: int = files.tokenizer.get_vocab_size()
        ends = {token for i in files.stop_token_ids if (token := files.tokenizer.id_to_token(i)) is not None}
        self._special = SpecialTokens(files.special_tokens, frozenset(ends))
        source = named_template(chat_template, files) if chat_template else files.template
        self._renderer = Renderer(source, self._special) if source else None
        self._probe = self._renderer.probe if self._renderer else TurnProbe()
        if self._probe.end_of_turn:
            self._special = SpecialTokens(files.special_tokens, frozenset({*ends, self._probe.end_of_turn}))
        stop_ids = (files.tokenizer.token_to_id(token) for token in self._special.ends)
        self.stop_token_ids: frozenset[int] = frozenset(i for i in stop_ids if i is not None)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts that the tokenizer reads as control tokens."""
        return self._special.all

    @property
    def has_chat_template(self) -> bool:
        """Whether rows are rendered with a chat template. Without one only prompts with completions and text work."""
        return self._renderer is not None

    def encode(self, example: Example, max_length: int | None = None) -> EncodedExample:
        """The example's token ids and which of them are trained; tokens from `max_length` on are cut off.

        Chat: ids equal transformers' `apply_chat_template`; trained is what the assistant writes, each turn through
        its end-of-turn token. Without template: prompt, trained completion, trained EOS. Text: all of it and EOS.
        Position 0 has nothing before it to be predicted from, whatever is said of it here.
        Raises RowError where the template rejects the conversation.
        """
        [prepared] = self._prepare([example])
        encoding = self._tokenizer.encode(prepared.rendering.text, add_special_tokens=prepared.adds_special_tokens)
        return self._finish(prepared, encoding, max_length)

    def encode_batch(self, examples: Iterable[Example], max_length: int | None = None) -> Iterator[EncodedExample]:
        """As `encode`, in order, a few hundred at a time on all cores. Raises RowError at the first bad row."""
        for batch in _batched(self._prepare(examples), _BATCH):
            for adds_special_tokens, group in groupby(batch, key=lambda one: one.adds_special_tokens):
                same = list(group)
                encodings = self._tokenizer.encode_batch(
                    [one.rendering.text for one in same], add_special_tokens=adds_special_tokens
                )
                for one, encoding in zip(same, encodings, strict=True):
                    yield self._finish(one, encoding, max_length)

    def segments(self, example: Example, max_length: int | None = None) -> tuple[Segment, ...]:
        """The example as the model reads it, up to `max_length` tokens, in stretches that are trained or not."""
        [prepared] = self._prepare([example])
        rendering, text = prepared.rendering, prepared.rendering.text
        encoding = self._tokenizer.encode(text, add_special_tokens=prepared.adds_special_tokens)
        encoded = self._finish(prepared, encoding, None)
        ends = [end for _, end in encoding.offsets][_doubled(prepared, encoding) :]
        if prepared.splits_at is not None and _is_crossed(encoding, prepared.splits_at):
            asked = len(self.render_prompt([Message("user", text[: prepared.splits_at], trained=False)]))
            apart = self._tokenizer.encode(text[: prepared.splits_at], add_special_tokens=True)
            said = len(encoded.input_ids) - asked - rendering.append_eos
            ends = [end for _, end in apart.offsets][:asked] + [len(text)] * said
        pieces: list[Segment] = []
        position = 0
        for index, (token, trained) in enumerate(zip(encoded.input_ids, encoded.completion_mask, strict=True)):
            if index == max_length:
                break
            end = ends[index] if index < len(ends) else 0
            is_added = end == 0  # by the tokenizer or by us, behind or before the text
            piece = (self._tokenizer.id_to_token(token) or "") if is_added else text[position:end]
            position = max(position, end)
            pieces.append((piece, trained and index > 0))
        grouped = groupby(pieces, key=lambda piece: piece[1])
        joined = (("".join(piece for piece, _ in group), trained) for trained, group in grouped)
        return tuple((piece, trained) for piece, trained in joined if piece)

    def render_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids after which the model writes its next turn: what training puts before a trained span.

        Without template only a single user message works. Raises InvalidRequestError.
        """
        if self._renderer is None:
            if len(messages) != 1 or messages[0].role != "user":
                raise InvalidRequestError(
                    "The model has no chat template, so it takes one user message at a time.",
                    code="no_chat_template",
                    param="messages",
                )
            encoding = self._tokenizer.encode(messages[0].content, add_special_tokens=True)
            ids = list(encoding.ids)
            while ids and ids[-1] == self.eos_token_id:
                ids.pop()
            return tuple(ids)
        answer = self._renderer.prompt([template_message(message) for message in messages])
        if "rejected" in answer:
            raise InvalidRequestError(
                f"The model's chat template rejects these messages: {answer['rejected']}.",
                code="template_rejected",
                param="messages",
            )
        text = answer["text"] + self._probe.header
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _prepare(self, examples: Iterable[Example]) -> Iterator[_Prepared]:
        """The examples as text, in order: those for a template many at once."""
        for is_rendered, group in groupby(examples, key=self._is_rendered):
            if not is_rendered or self._renderer is None:
                yield from map(self._join, group)
                continue
            ahead, behind = tee(group)
            rendered = self._renderer.render(ahead)
            for example in behind:
                try:
                    rendering, notes = next(rendered)
                except RowError as error:
                    if error.code != ANSWER_LOST:
                        raise
                    raise self._advised(error, example) from error
                yield _Prepared(example.row, rendering, adds_special_tokens=False, notes=notes)
            next(rendered, None)  # to its end, or its child would be ended for not being heard

    def _advised(self, error: RowError, example: Example) -> RowError:
        """The error with which of our own templates would not lose the answer."""
        keepers = []
        for name in usable_templates(self._files):
            try:
                list(Renderer(named_template(name, self._files), self._special).render([example]))
            except RowError:
                continue
            keepers.append(f"{name!r}")
        ours = " and ".join(keepers)
        advice = (
            f"With `chat_template` {ours} it is kept." if ours else "None of the templates of this service keeps it."
        )
        return RowError(error.row, error.problem, error.param, f"{error.fix} {advice}", code=error.code)

    def _is_rendered(self, example: Example) -> bool:
        return example.text is None and self._renderer is not None

    def _join(self, example: Example) -> _Prepared:
        """A row that goes without a template: raw text, or a prompt and its completion."""
        if example.text is not None:
            spans = ((0, len(example.text)),) if example.text.strip() else ()
            rendering = Rendering(example.text, spans, append_eos=bool(spans))
            return _Prepared(example.row, rendering, adds_special_tokens=True)
        roles = [message.role for message in example.messages]
        if roles != ["user", "assistant"]:
            raise RowError(
                example.row,
                f"the model has no chat template, and the row is a conversation ({', '.join(roles[:6])}).",
                "messages",
                "Name a `chat_template`, or use rows with one prompt and one completion.",
                code="no_chat_template",
            )
        prompt, completion = example.messages
        text = prompt.content + completion.content
        spans = ((len(prompt.content), len(text)),) if completion.trained else ()
        rendering = Rendering(text, spans, append_eos=bool(spans))
        return _Prepared(example.row, rendering, adds_special_tokens=True, splits_at=len(prompt.content))

    def _finish(self, prepared: _Prepared, encoding: Encoding, max_length: int | None) -> EncodedExample:
        rendering = prepared.rendering
        doubled = _doubled(prepared, encoding)
        ids = list(encoding.ids[doubled:])
        trained = _mark(rendering, encoding, has_added_tokens=prepared.adds_special_tokens)[doubled:]
        if prepared.splits_at is not None and _is_crossed(encoding, prepared.splits_at):
            ids, trained = self._encode_apart(rendering, prepared.splits_at)
        if rendering.append_eos:
            if ids and ids[-1] == self.eos_token_id:  # the tokenizer's or the text's own
                trained[-1] = True
            else:
                ids.append(self.eos_token_id)
                trained.append(True)
        if prepared.adds_special_tokens and rendering.spans == ((0, len(rendering.text)),):
            trained = [True] * len(ids)
        total = len(ids)
        if max_length is not None and total > max_length:
            ids, trained = ids[:max_length], trained[:max_length]
        return EncodedExample(prepared.row, tuple(ids), tuple(trained), total - len(ids), prepared.notes)

    def _encode_apart(self, rendering: Rendering, splits_at: int) -> tuple[list[int], list[bool]]:
        """Prompt and completion tokenized on their own, because one token would hold the end of the one and the
        start of the other: generation starts from the prompt's own tokens."""
        prompt = self.render_prompt([Message("user", rendering.text[:splits_at], trained=False)])
        completion = self._tokenizer.encode(rendering.text[splits_at:], add_special_tokens=False).ids
        return [*prompt, *completion], [False] * len(prompt) + [bool(rendering.spans)] * len(completion)


def _mark(rendering: Rendering, encoding: Encoding, *, has_added_tokens: bool) -> list[bool]:
    """Which tokens are trained: those that begin inside a span, and one that crosses into it carrying only blanks."""
    offsets = encoding.offsets
    trained = [False] * len(offsets)
    starts = [start for start, _ in offsets]
    length = len(starts)
    if has_added_tokens:  # those behind the text have offset 0, and the search needs ascending ones
        is_added = encoding.special_tokens_mask
        while length and is_added[length - 1]:
            length -= 1
    for start, end in rendering.spans:
        first = bisect_left(starts, start, hi=length)
        last = bisect_left(starts, end, lo=first, hi=length)
        if first and (crossing := offsets[first - 1])[1] > start and not rendering.text[crossing[0] : start].strip():
            first -= 1
        trained[first:last] = [True] * (last - first)
    return trained


def _doubled(prepared: _Prepared, encoding: Encoding) -> int:
    """1 where the tokenizer puts before the text the very token that the text begins with, else 0: BOS stands once."""
    if not prepared.adds_special_tokens:
        return 0
    ids = encoding.ids
    return int(len(ids) > 1 and ids[0] == ids[1] and encoding.special_tokens_mask[0] == 1)


def _is_crossed(encoding: Encoding, position: int) -> bool:
    return any(start < position < end for start, end in encoding.offsets)


def _batched(prepared: Iterable[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    """At most `size` at once, and not many more characters than `_BATCH_CHARACTERS`."""
    batch: list[_Prepared] = []
    characters = 0
    for one in prepared:
        batch.append(one)
        characters += len(one.rendering.text)
        if len(batch) == size or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
