"""What a plan says is true of its numbers: rates, held-out rows, batches and packing."""

from dataclasses import replace

import pytest

from planner.errors import InvalidSetupError
from planner.wording import sentences
from tests.unit.planner.test_policy import CPU, planned, rows


@pytest.mark.parametrize(
    ("requested", "said"),
    [
        ({}, "that peak is usual for adapters"),
        ({"learning_rate_multiplier": 1.0}, "that peak is usual for adapters"),
        ({"learning_rate_multiplier": 100.0}, "100 times the 0.0013 usual for adapters"),
        ({"learning_rate_multiplier": 1e-9}, "1e-09 times the 0.0013 usual"),
        ({"learning_rate": 0.0026}, "2 times the 0.0013 usual"),
        ({"learning_rate": 0.0013}, "that peak is usual for adapters"),
    ],
)
def test_the_rate_is_called_usual_only_where_it_is(requested, said):
    found = [x for x in sentences(planned("smollm2-135m-instruct", CPU, **requested).reasons) if "learning rate" in x]
    assert len(found) == 1
    assert said in found[0]
    assert ("as you asked" in found[0]) == (" times the " in found[0])
    extreme = any(word in found[0] for word in ("diverge", "hardly changes"))
    assert extreme == (requested.get("learning_rate_multiplier") in (100.0, 1e-9))


def test_a_cpu_without_bfloat16_is_planned_in_float32_with_its_memory_and_time():
    fast, slow = (planned("smollm2-135m-instruct", replace(CPU, multiplies_bfloat16=has)) for has in (True, False))
    assert (fast.setup.dtype, slow.setup.dtype) == ("bfloat16", "float32")
    assert slow.memory.base_weights_bytes == 2 * fast.memory.base_weights_bytes
    assert slow.speed.training_seconds > fast.speed.training_seconds
    assert "bfloat16" not in " ".join(sentences(fast.reasons))
    assert [sentence for sentence in sentences(slow.reasons) if "the base computes in float32" in sentence]


@pytest.mark.parametrize(
    ("count", "split", "held_out"),
    [(10, None, 0), (20, None, 1), (1000, None, 50), (200_000, None, 512), (1000, 0, 0), (1000, 0.1, 100),
     (1000, 1, 1), (1000, 700, 700), (3, 0.1, 1), (2, 1, 1)],
)  # fmt: skip
def test_the_rows_held_out_are_the_datas_or_ones_own(count, split, held_out):
    chosen = planned("smollm2-135m-instruct", "A100-80GB", rows(count, 100), validation_split=split)
    assert chosen.hyperparameters.held_out_rows == held_out
    said = next(sentence for sentence in sentences(chosen.reasons) if "held out" in sentence)
    assert ("too few" in said) == (0 < held_out < 20)
    assert said.startswith("No row" if held_out == 0 else ("1 row " if held_out == 1 else f"{held_out:,} rows "))


def test_a_validation_file_is_measured_on_instead():
    with_file = rows(1000, 100).with_validation(rows(12, 100))
    chosen = planned("smollm2-135m-instruct", "A100-80GB", with_file, validation_split=0)
    assert chosen.hyperparameters.held_out_rows == 0
    assert "12 rows of the validation file; fewer than 20" in " ".join(sentences(chosen.reasons))
    with pytest.raises(InvalidSetupError, match="Leave one of them out"):
        planned("smollm2-135m-instruct", "A100-80GB", with_file, validation_split=0.1)


def test_a_batch_above_the_data_set_takes_all_rows_and_memory_is_planned_for_them():
    whole = planned("smollm2-135m-instruct", CPU, rows(20, 60), batch_size=256)
    assert whole.setup.effective_batch_size == 19
    assert whole.total_steps == whole.n_epochs
    assert whole.memory == planned("smollm2-135m-instruct", CPU, rows(20, 60), batch_size=19).memory
    assert any(
        "A batch of 256 is more than there is to train on, so a step takes all 19" in x
        for x in sentences(whole.reasons)
    )
    pinned = planned("smollm2-135m-instruct", CPU, rows(20, 60), batch_size=256, per_device_train_batch_size=128)
    assert (pinned.setup.per_device_train_batch_size, pinned.setup.effective_batch_size) == (19, 19)


@pytest.mark.parametrize("count", [12, 38, 200, 3000])
@pytest.mark.parametrize("length", [40, 80, 400])
def test_packing_keeps_the_number_of_steps(count, length):
    data = rows(count, length)
    plain = planned("smollm2-135m-instruct", "A100-80GB", data, packing=False)
    packed = planned("smollm2-135m-instruct", "A100-80GB", data, packing=True)
    assert packed.setup.packing
    assert packed.total_steps >= 0.7 * plain.total_steps
    trained = count - packed.hyperparameters.held_out_rows
    assert packed.setup.effective_batch_size * packed.setup.max_length <= 1.5 * trained * max(length, 64)


def test_packing_that_would_starve_a_run_is_refused_with_the_numbers():
    with pytest.raises(
        InvalidSetupError, match=r"38 examples into 2 rows of 2,048 tokens.* 2 optimizer steps.* 10 without"
    ):
        planned("smollm2-135m-instruct", "A100-80GB", rows(38, 80), packing=True, max_length=2048)
