"""Dry runs are asked for once, answered by a worker, remembered, and forgotten in time, on both databases."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from threading import Thread
from types import SimpleNamespace
from typing import cast

import pytest

from core.db.base import utc_now
from core.db.session import Database
from core.errors import InvalidModelError, LimitReachedError, NotYetError, ServiceUnavailableError
from core.plans import dry_runs
from core.plans.models import DryRunRow
from core.plans.queries import unanswered
from core.queue.messages import DRY_RUN, MAINTENANCE_QUEUE, Message, Nudge
from core.runtime import Runtime
from planner.catalogue import find_model
from planner.memory.dry_run import DryRunMemory, DryRunQuestion, DryRunStep
from planner.model.spec import ModelSpec
from planner.options import Priority, RequestedConfig
from planner.setup import Method, TrainingSetup
from planner.statistics import DatasetStatistics

ORGANIZATION = "org_one"
QUESTION = DryRunQuestion(
    {"model_type": "strange", "hidden_size": 64},
    ("cpu",),
    DatasetStatistics(10, 100, 50, (10,) * 10),
    RequestedConfig(),
)


@pytest.fixture
def runtime(database: Database) -> Runtime:
    return cast(Runtime, SimpleNamespace(database=database))


def answered(_question: DryRunQuestion) -> DryRunMemory:
    entry = find_model("smollm2-135m-instruct")
    assert entry is not None
    setup = TrainingSetup(Method.FULL)
    step = DryRunStep(setup, "cpu", 1, 2, {"forward": 3}, "aten.mm (forward)", (2,))
    return DryRunMemory(replace(ModelSpec.from_config(entry.config), model_type="strange"), (step,))


def refused(_question: DryRunQuestion) -> DryRunMemory:
    raise InvalidModelError("It cannot be built.", code="unsupported_architecture", param="model")


def never(_question: DryRunQuestion) -> DryRunMemory:
    pytest.fail("it was dry-run again")


def ask(runtime: Runtime, question: DryRunQuestion = QUESTION) -> str:
    """Ask, be told to come back, and return the id of the oldest dry run that waits."""
    with pytest.raises(NotYetError) as told:
        dry_runs.memory_for(runtime, ORGANIZATION, question)
    assert told.value.code == "dry_run_pending"
    assert told.value.retry_after_seconds > 0
    with runtime.database.read() as session:
        return unanswered(session, 1)[0]


def test_an_answer_is_found_by_whoever_asks_again(runtime: Runtime, sent: list[Message]) -> None:
    dry_run_id = ask(runtime)
    assert ask(runtime) == dry_run_id
    assert sent == [Nudge(DRY_RUN, MAINTENANCE_QUEUE, dry_run_id)]
    dry_runs.answer(runtime, dry_run_id, answered)
    assert dry_runs.memory_for(runtime, ORGANIZATION, QUESTION) == answered(QUESTION)
    dry_runs.answer(runtime, dry_run_id, never)
    dry_runs.answer(runtime, "no such id", never)


def test_options_that_change_no_step_share_a_dry_run(runtime: Runtime) -> None:
    dry_runs.answer(runtime, ask(runtime), answered)
    same = RequestedConfig(priority=Priority.ECONOMY, n_epochs=9, batch_size=4, learning_rate_multiplier=0.5)
    assert dry_runs.memory_for(runtime, ORGANIZATION, replace(QUESTION, requested=same)).spec.model_type == "strange"
    for other in (
        RequestedConfig(lora_rank=64),
        RequestedConfig(max_length=32),
        RequestedConfig(lora_dropout=0.1),
        RequestedConfig(method=Method.FULL),
    ):
        ask(runtime, replace(QUESTION, requested=other))


@pytest.mark.parametrize("dry_run", [answered, refused])
def test_answers_outlive_refusals_and_both_are_forgotten(
    runtime: Runtime, dry_run: Callable[[DryRunQuestion], DryRunMemory]
) -> None:
    dry_runs.answer(runtime, ask(runtime), dry_run)
    if dry_run is refused:
        with pytest.raises(InvalidModelError, match=r"It cannot be built\.") as told:
            dry_runs.memory_for(runtime, ORGANIZATION, QUESTION)
        assert told.value.code == "unsupported_architecture"
    for later, kept in (
        (timedelta(0), True),
        (dry_runs.REFUSALS_KEPT, dry_run is answered),
        (dry_runs.KEPT, False),
    ):
        with runtime.database.transaction() as session:
            dry_runs.forget_old(session, utc_now() + later)
        with runtime.database.read() as session:
            assert (session.query(DryRunRow).count() == 1) is kept


def test_a_dry_run_that_was_interrupted_stays_to_be_done(runtime: Runtime) -> None:
    def interrupted(_question: DryRunQuestion) -> DryRunMemory:
        raise ServiceUnavailableError("The worker stops.")

    dry_run_id = ask(runtime)
    with pytest.raises(ServiceUnavailableError):
        dry_runs.answer(runtime, dry_run_id, interrupted)
    assert ask(runtime) == dry_run_id
    dry_runs.answer(runtime, dry_run_id, answered)
    assert dry_runs.memory_for(runtime, ORGANIZATION, QUESTION) == answered(QUESTION)


def test_not_everyone_may_wait(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_runs, "MOST_WAITING", 2)
    for rank in (1, 2):
        ask(runtime, replace(QUESTION, requested=RequestedConfig(lora_rank=rank)))
    with pytest.raises(ServiceUnavailableError, match="2 models wait"):
        dry_runs.memory_for(runtime, ORGANIZATION, replace(QUESTION, requested=RequestedConfig(lora_rank=3)))
    ask(runtime, replace(QUESTION, requested=RequestedConfig(lora_rank=1)))


def test_organizations_take_turns_and_each_may_have_a_few_wait(runtime: Runtime) -> None:
    def wanted(rank: int) -> DryRunQuestion:
        return replace(QUESTION, requested=RequestedConfig(lora_rank=rank))

    for rank in range(1, dry_runs.MOST_WAITING_EACH + 1):
        ask(runtime, wanted(rank))
    with pytest.raises(LimitReachedError) as refused:
        dry_runs.memory_for(runtime, ORGANIZATION, wanted(99))
    assert refused.value.code == "waiting_dry_runs_limit"
    with pytest.raises(NotYetError):
        dry_runs.memory_for(runtime, "org_other", wanted(99))

    order: list[int | None] = []

    def note(question: DryRunQuestion) -> DryRunMemory:
        order.append(question.requested.lora_rank)
        return answered(question)

    while dry_runs.answer_next(runtime, note):
        pass
    assert order == [1, 99, 2, 3, 4, 5]


def test_two_workers_never_dry_run_the_same_question_at_once(runtime: Runtime) -> None:
    """While the first works, the second gets the other question and then none; what it has given up, it gets."""
    first = ask(runtime)
    ask(runtime, replace(QUESTION, requested=RequestedConfig(lora_rank=64)))
    seen: list[int | None] = []

    def note(question: DryRunQuestion) -> DryRunMemory:
        seen.append(question.requested.lora_rank)
        return answered(question)

    def while_another_asks(question: DryRunQuestion) -> DryRunMemory:
        dry_runs.answer(runtime, first, never)
        assert dry_runs.answer_next(runtime, note)
        assert not dry_runs.answer_next(runtime, never)
        raise ServiceUnavailableError(f"The worker stops while it dry-runs {question.requested.lora_rank}.")

    with pytest.raises(ServiceUnavailableError, match="dry-runs None"):
        dry_runs.answer_next(runtime, while_another_asks)
    assert seen == [64]
    assert dry_runs.answer_next(runtime, note)
    assert seen == [64, None]


def test_workers_that_ask_at_once_share_the_questions(runtime: Runtime) -> None:
    ranks = list(range(1, dry_runs.MOST_WAITING_EACH + 1))
    for rank in ranks:
        ask(runtime, replace(QUESTION, requested=RequestedConfig(lora_rank=rank)))
    seen: list[int | None] = []

    def note(question: DryRunQuestion) -> DryRunMemory:
        seen.append(question.requested.lora_rank)
        return answered(question)

    def work() -> None:
        while dry_runs.answer_next(runtime, note):
            pass

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen, key=str) == ranks
