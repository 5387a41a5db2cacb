"""Answers to held-out prompts, before and after training, for a person to compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from core.datasets.encoding import Encoder
from core.datasets.examples import Example
from core.errors import InvalidRequestError
from planner.constants import ANSWERED_AT_ONCE
from worker.training.memory import MEMORY_ERRORS, is_out_of_memory, release
from worker.training.model.loading import LoadedModel, plain_attention
from worker.training.stopping import StopSignal

_TEXT_PROMPT_TOKENS = 32  # raw text has no prompt; its beginning serves


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt, as tokens and as a person reads it, with the answer that the data set gives."""

    row: int
    token_ids: tuple[int, ...]
    text: str
    reference: str
    expected: str  # what exact match compares with: the value of its column, else `reference`


@dataclass(frozen=True)
class Answer:
    """A greedy answer. `stopped` is True where the model ended it by itself, False at the length limit."""

    text: str
    tokens: int
    stopped: bool


def choose_prompts(examples: Iterable[Example], encoder: Encoder, count: int, max_length: int) -> tuple[Prompt, ...]:
    """Prompts of the first `count` held-out examples that have one of at most `max_length` tokens."""
    prompts: list[Prompt] = []
    for example in examples:
        if len(prompts) == count:
            break
        prompt = _text_prompt(example, encoder) if example.text is not None else _chat_prompt(example, encoder)
        if prompt is not None and 0 < len(prompt.token_ids) <= max_length:
            prompts.append(prompt)
    return tuple(prompts)


def _text_prompt(example: Example, encoder: Encoder) -> Prompt:
    ids = encoder.encode(example).input_ids
    cut = min(_TEXT_PROMPT_TOKENS, len(ids) // 2)
    reference = encoder.decode(ids[cut:])
    return Prompt(example.row, ids[:cut], encoder.decode(ids[:cut]), reference, expected=reference)


def _chat_prompt(example: Example, encoder: Encoder) -> Prompt | None:
    turns = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    if not turns or turns[-1] == 0:
        return None
    asked, answer = example.messages[: turns[-1]], example.messages[turns[-1]]
    try:
        token_ids = encoder.render_prompt(asked)
    except InvalidRequestError:
        return None  # a conversation that the template takes only whole
    expected = answer.content if example.reference is None else example.reference
    return Prompt(example.row, token_ids, asked[-1].content, answer.content, expected)


def answer_prompts(
    loaded: LoadedModel, prompts: Sequence[Prompt], encoder: Encoder, stop: StopSignal, max_new_tokens: int
) -> tuple[Answer, ...]:
    """Greedy answers, eight prompts in one batch with a key-value cache. Touches no random state.

    Where memory runs out, in two batches of half the size, and so on. Raises the device's out-of-memory error where a
    single prompt does not fit.
    """
    answers: list[Answer] = []
    for start in range(0, len(prompts), ANSWERED_AT_ONCE):
        batch = prompts[start : start + ANSWERED_AT_ONCE]
        answers += _answer_shrinking(loaded, batch, encoder, stop, max_new_tokens)
    return tuple(answers)


def _answer_shrinking(
    loaded: LoadedModel, prompts: Sequence[Prompt], encoder: Encoder, stop: StopSignal, max_new_tokens: int
) -> tuple[Answer, ...]:
    try:
        return _answer_batch(loaded, prompts, encoder, stop, max_new_tokens)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error) or len(prompts) == 1:
            raise
    release()
    half = len(prompts) // 2
    first = _answer_shrinking(loaded, prompts[:half], encoder, stop, max_new_tokens)
    return first + _answer_shrinking(loaded, prompts[half:], encoder, stop, max_new_tokens)


@torch.compiler.set_stance("force_eager")  # every token is a batch of another shape
def _answer_batch(
    loaded: LoadedModel, prompts: Sequence[Prompt], encoder: Encoder, stop: StopSignal, max_new_tokens: int
) -> tuple[Answer, ...]:
    longest = max(len(prompt.token_ids) for prompt in prompts)
    ids = torch.full((len(prompts), longest), encoder.pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padding on the left: generation goes on at the right
        ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        mask[row, longest - len(prompt.token_ids) :] = 1
    ends = sorted({*encoder.stop_token_ids, encoder.eos_token_id})
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=encoder.pad_token_id
    )
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        with torch.inference_mode(), plain_attention(loaded), stop.interruptible():
            produced: torch.Tensor = loaded.causal_model.generate(  # type: ignore[operator]  # a mixin's method
                input_ids=ids.to(loaded.device),
                attention_mask=mask.to(loaded.device),
                generation_config=config,
            )
    finally:
        loaded.model.train(was_training)
    return tuple(_cut(row, set(ends), encoder) for row in produced[:, longest:].tolist())


def _cut(token_ids: list[int], ends: set[int], encoder: Encoder) -> Answer:
    for index, token in enumerate(token_ids):
        if token in ends:
            return Answer(encoder.decode(token_ids[:index]).strip(), index, stopped=True)
    return Answer(encoder.decode(token_ids).strip(), len(token_ids), stopped=False)
