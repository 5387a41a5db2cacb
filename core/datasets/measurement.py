"""Tokens of a data file under one model's tokenizer and template."""

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.datasets.accounting import row_shape
from core.datasets.encoding import Encoder, Segment
from core.datasets.examples import DataFormat, EncodedExample, Example, RowNote
from core.datasets.notices import Notice, NoticeCollector, combined
from core.datasets.noticing import ContentWatch, NoticeBoard
from core.datasets.reading import read_examples
from core.datasets.unread import UnreadColumns
from planner.statistics import DatasetStatistics

__all__ = ["RenderedRow", "TokenHistogram", "TokenInspection", "measure_tokens"]

_PREVIEW_ROWS = 5
_PREVIEW_CHARACTERS = 4000
_SHOWN_ROWS = 20
_LONGEST_ROWS = 8
_BATCH, _BATCH_CHARACTERS = 1024, 4 * 1024**2
_SMALLEST_BUCKET = 16
_MOST_SHAPES = 20_000


@dataclass(frozen=True)
class TokenHistogram:
    """Examples by length. Bucket i holds lengths from `edges[i]` up to, not including, `edges[i + 1]`, in tokens."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RenderedRow:
    """A row as the model reads it: stretches of text with whether they are trained. `is_clipped`: shown in part."""

    row: int
    segments: tuple[Segment, ...]
    tokens: int
    trained_tokens: int
    is_clipped: bool = False


@dataclass(frozen=True)
class TokenInspection:
    """What a model would be trained on. Row counts are of all rows: scaled up where `statistics.sampled`.

    Where `max_length` is set all is counted after truncation, but for `statistics.token_lengths`. `masked_rows` have no
    trained token. `rows_without_eos` are trained and hold no trained token that ends generation, because nothing
    follows the answer or because it is cut; `eos_trained` says that some row has one and every row that is not cut.
    """

    statistics: DatasetStatistics
    histogram: TokenHistogram
    max_length: int | None
    truncated_rows: int
    truncated_tokens: int
    masked_rows: int
    first_masked_rows: tuple[int, ...]
    eos_trained: bool
    rows_without_eos: int
    preview: tuple[RenderedRow, ...]
    notices: tuple[Notice, ...] = ()
    chat_template: str | None = None  # the named template that rendered the rows; None: the model's own, or none


@dataclass(frozen=True)
class _Measured:
    row: int
    tokens: int  # before truncation
    trained: int  # after truncation
    truncated: int
    ends: bool  # a trained token ends generation


def measure_tokens(
    path: Path,
    data_format: DataFormat,
    encoder: Encoder,
    *,
    max_length: int | None = None,
    sample_rows: int = 5000,
    seed: int = 0,
) -> TokenInspection:
    """Count the tokens of every row, or of a uniform sample of `sample_rows` and the longest rows where there are more.

    Totals of a sample are scaled to all rows. Raises InvalidDatasetError (RowError) for a row that cannot be encoded.
    """
    sample = _Sample(encoder, max_length, sample_rows, seed)
    noticed, unread = NoticeCollector(), UnreadColumns(data_format)
    for example in read_examples(path, data_format, noticed, unread.take):
        sample.take(example)
    measured = sample.finish()
    scale = sample.rows / max(1, len(measured))
    lengths = sorted(one.tokens for one in measured)
    is_sampled = sample.rows > len(measured)
    if is_sampled:
        lengths += sorted(length for length in sample.longest_lengths() if length > lengths[-1])
    masked = [one for one in measured if not one.trained]
    endless = [one for one in measured if one.trained and not one.ends]
    cut = [one for one in endless if one.truncated]
    if cut:
        message = f"The end of the answer is cut off at max_length, {max_length} tokens: no end is learned there."
        first = min(one.row for one in cut)
        sample.board.add(RowNote("answer_end_cut", message), first, round(scale * len(cut)))
    return TokenInspection(
        statistics=DatasetStatistics(
            examples=sample.rows,
            tokens=round(scale * sum(one.tokens - one.truncated for one in measured)),
            trained_tokens=round(scale * sum(one.trained for one in measured)),
            token_lengths=tuple(lengths),
            sampled=is_sampled,
        ),
        histogram=_histogram([min(length, max_length) for length in lengths] if max_length else lengths),
        max_length=max_length,
        truncated_rows=round(scale * sum(one.truncated > 0 for one in measured)),
        truncated_tokens=round(scale * sum(one.truncated for one in measured)),
        masked_rows=round(scale * len(masked)),
        first_masked_rows=tuple(sorted(one.row for one in masked)[:_SHOWN_ROWS]),
        eos_trained=len(cut) == len(endless) and any(one.ends for one in measured),
        rows_without_eos=round(scale * len(endless)),
        preview=tuple(_rendered(encoder, example, max_length) for example in sample.first),
        notices=combined(noticed.notices(), unread.notices(), sample.notices()),
        chat_template=encoder.chat_template_name,
    )


@dataclass
class _Shape:
    """Rows that a template treats alike, and what it leaves out of each."""

    first_row: int
    rows: int = 0
    notes: tuple[RowNote, ...] = ()


class _Sample:
    """A uniform sample of a stream by reservoir sampling (Vitter's algorithm R), measured in batches.

    Examples are measured when drawn and then dropped, so memory holds a batch of text, not the sample's.
    """

    def __init__(self, encoder: Encoder, max_length: int | None, size: int, seed: int) -> None:
        self._encoder, self._max_length, self._size = encoder, max_length, size
        self._random = random.Random(seed)
        self._slots: list[_Measured | None] = []
        self._pending: list[tuple[int, Example]] = []
        self._pending_characters = 0
        self._longest: list[tuple[int, int, Example]] = []
        self._shapes: dict[object, _Shape] = {}
        self._unseen: list[Example] = []  # the first of their shape, and not in the sample
        self._watch = ContentWatch(encoder.special_tokens)
        self.board = NoticeBoard()
        self.rows = 0
        self.first: list[Example] = []

    def take(self, example: Example) -> None:
        if len(self.first) < _PREVIEW_ROWS:
            self.first.append(example)
        self.rows += 1
        if len(self._slots) < self._size:
            slot = len(self._slots)
            self._slots.append(None)
        else:
            slot = self._random.randrange(self.rows)
        if slot < self._size:
            self._pending.append((slot, example))
            self._pending_characters += _characters(example)
            if len(self._pending) == _BATCH or self._pending_characters >= _BATCH_CHARACTERS:
                self._measure_pending()
        if self._encoder.has_chat_template and example.text is None:
            self._look(example, is_sampled=slot < self._size)
        entry = (_characters(example), -example.row, example)
        if len(self._longest) < _LONGEST_ROWS:
            heapq.heappush(self._longest, entry)
        elif entry[0] > self._longest[0][0]:
            heapq.heapreplace(self._longest, entry)

    def _look(self, example: Example, *, is_sampled: bool) -> None:
        """Every row is accounted for, sampled or not: rendered, or of a shape that was."""
        for note in self._watch.notes(example):
            self.board.add(note, example.row)
        key = row_shape(example)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) == _MOST_SHAPES:
                return
            shape = self._shapes[key] = _Shape(example.row)
            if not is_sampled:
                self._unseen.append(example)
        shape.rows += 1

    def finish(self) -> list[_Measured]:
        self._measure_pending()
        for example, encoded in zip(self._unseen, self._encoder.encode_batch(self._unseen), strict=True):
            self._shapes[row_shape(example)].notes = encoded.notes
        return [one for one in self._slots if one is not None]

    def notices(self) -> tuple[Notice, ...]:
        """What the rows hold that is not read as it was meant, and what of them the template leaves out."""
        for shape in self._shapes.values():
            for note in shape.notes:
                self.board.add(note, shape.first_row, shape.rows)
        return self.board.notices()

    def longest_lengths(self) -> list[int]:
        """Tokens of the rows with the most characters, sampled or not."""
        return [len(one.input_ids) for one in self._encoder.encode_batch(entry[2] for entry in self._longest)]

    def _measure_pending(self) -> None:
        encoded = self._encoder.encode_batch((example for _, example in self._pending), self._max_length)
        for (slot, example), one in zip(self._pending, encoded, strict=True):
            self._slots[slot] = self._measure(one)
            if one.notes and (shape := self._shapes.get(row_shape(example))):
                shape.notes = one.notes
        self._pending, self._pending_characters = [], 0

    def _measure(self, encoded: EncodedExample) -> _Measured:
        stops = self._encoder.stop_token_ids
        return _Measured(
            row=encoded.row,
            tokens=len(encoded.input_ids) + encoded.truncated_tokens,
            trained=sum(encoded.completion_mask[1:]),  # nothing stands before the first to predict it from
            truncated=encoded.truncated_tokens,
            ends=any(is_trained and token in stops for token, is_trained in _from_end(encoded)),
        )


def _from_end(encoded: EncodedExample) -> Iterator[tuple[int, bool]]:
    return zip(reversed(encoded.input_ids), reversed(encoded.completion_mask), strict=True)


def _characters(example: Example) -> int:
    return len(example.text or "") + sum([len(message.content) for message in example.messages])


def _histogram(lengths: Sequence[int]) -> TokenHistogram:
    """Two buckets per doubling: 0, 16, 24, 32, 48, 64, ..."""
    edges = [0, _SMALLEST_BUCKET]
    while lengths and edges[-1] <= lengths[-1]:
        edges.append(edges[-1] * 3 // 2 if len(edges) % 2 == 0 else edges[-1] * 4 // 3)
    counts = [0] * (len(edges) - 1)
    bucket = 0
    for length in lengths:
        while length >= edges[bucket + 1]:
            bucket += 1
        counts[bucket] += 1
    return TokenHistogram(tuple(edges), tuple(counts))


def _rendered(encoder: Encoder, example: Example, max_length: int | None) -> RenderedRow:
    encoded = encoder.encode(example, max_length)
    left = _PREVIEW_CHARACTERS
    segments: list[Segment] = []
    for text, is_trained in encoder.segments(example, max_length):
        if left > 0:
            segments.append((text[:left], is_trained))
        left -= len(text)
    is_clipped = left < 0 or encoded.truncated_tokens > 0
    return RenderedRow(
        example.row, tuple(segments), len(encoded.input_ids), sum(encoded.completion_mask[1:]), is_clipped
    )
