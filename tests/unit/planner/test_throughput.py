"""Speed and time."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from planner.catalogue import find_model
from planner.devices import Device, parse_gpu
from planner.model.spec import ModelSpec
from planner.published.cases import read_case
from planner.setup import Hyperparameters, Method, TrainingSetup
from planner.statistics import DatasetStatistics
from planner.throughput import (
    Answering,
    SpeedCalibration,
    estimate_speed,
    flops_per_token,
    held_out_examples,
    tokens_per_second,
    total_steps,
    truncated_tokens,
)

CASES = Path(__file__).parents[3] / "bench" / "published_cases.jsonl"
CPU = Device(0, "cpu", "CPU, 2 cores", "cpu", 24 << 30, 20 << 30, None, "cpu", 2)
SMOLLM2 = ModelSpec.from_config(find_model("smollm2-135m-instruct").config)
LLAMA = ModelSpec.from_config(find_model("llama-3.1-8b").config)
LORA = TrainingSetup(
    Method.LORA, lora_rank=8, lora_alpha=16, lora_target_modules=("all-linear",), adapter_dtype="float32"
)
HYPERPARAMETERS = Hyperparameters(n_epochs=4, learning_rate=1e-3)
HELD_OUT = replace(HYPERPARAMETERS, held_out_rows=6)


def rows(count, length):
    return DatasetStatistics(count, count * length, count * length // 2, (length,) * min(count, 1000))


def test_published_speeds_are_met_within_a_fifth():
    errors = []
    for line in CASES.read_text().splitlines():
        row = json.loads(line)
        case = read_case(row)
        speed = tokens_per_second(case.spec, case.setup, case.device, case.setup.max_length, case.backend)
        errors.append(abs(speed / row["tokens_per_second"] - 1))
    assert mean(errors) <= 0.2


def test_a_small_model_on_two_cores_is_as_fast_as_measured():
    setup = replace(LORA, max_length=128, per_device_train_batch_size=8)
    assert 310 <= tokens_per_second(SMOLLM2, setup, CPU, 100) <= 460


def test_flops_are_four_six_and_eight_per_weight():
    def per_weight(setup):
        return flops_per_token(LLAMA, setup, 1) / LLAMA.active_parameters

    assert per_weight(LORA) == pytest.approx(4, rel=0.02)
    assert per_weight(TrainingSetup(Method.FULL)) == pytest.approx(6, rel=0.02)
    assert per_weight(TrainingSetup(Method.FULL, gradient_checkpointing=True)) == pytest.approx(8, rel=0.02)


def test_a_mixture_works_with_its_active_experts_only():
    mixtral = ModelSpec.from_config({"model_type": "mixtral"})
    assert flops_per_token(mixtral, LORA, 1) < 4.3 * 13e9


def test_dequantizing_costs_time():
    gpu = parse_gpu("A100-80GB")
    setup = replace(LORA, max_length=512)
    assert tokens_per_second(LLAMA, replace(setup, method=Method.QLORA), gpu, 512) < tokens_per_second(
        LLAMA, setup, gpu, 512
    )


def test_a_faster_gpu_is_faster_and_a_tiny_model_is_bound_by_launches():
    speeds = [tokens_per_second(LLAMA, LORA, parse_gpu(name), 2048) for name in ("L4", "A100-80GB", "H100-80GB")]
    assert speeds == sorted(speeds)
    short = replace(LORA, max_length=64)
    assert tokens_per_second(SMOLLM2, short, parse_gpu("H100-80GB"), 64) == pytest.approx(64 / 0.03)


def test_total_time_has_its_fixed_parts():
    speed = estimate_speed(SMOLLM2, replace(LORA, max_length=128), CPU, rows(130, 100), HELD_OUT)
    assert speed.total_steps == total_steps(rows(130, 100), LORA, HELD_OUT)
    assert speed.seconds > speed.training_seconds + 5
    assert speed.loading_seconds > 0 < speed.evaluation_seconds
    assert speed.step_seconds * speed.total_steps == pytest.approx(speed.training_seconds)
    doubled = replace(HELD_OUT, held_out_rows=12)
    longer = estimate_speed(SMOLLM2, replace(LORA, max_length=128), CPU, rows(260, 100), doubled)
    assert longer.training_seconds == pytest.approx(2 * speed.training_seconds, rel=0.03)


@pytest.mark.parametrize("device", [CPU, parse_gpu("A100-80GB")])
def test_answers_take_the_time_of_their_batches_at_full_length(device):
    def seconds(statistics, *answering):
        held_out = replace(HYPERPARAMETERS, held_out_rows=statistics.examples // 20)
        estimate = estimate_speed(SMOLLM2, LORA, device, statistics, held_out, Answering(*answering))
        assert estimate.seconds > estimate.sampling_seconds
        return estimate.sampling_seconds

    many = rows(2000, 100)  # 100 of them held out
    assert 0 < seconds(many) == pytest.approx(seconds(many, 8, 96))
    assert seconds(many, 32, 256) == pytest.approx(seconds(many, 8, 96) * 4 * 256 / 96)
    assert seconds(many, 32, 256) < seconds(many, 33, 256) == pytest.approx(seconds(many, 40, 256))
    assert seconds(many, 100, 256) == seconds(many, 512, 256), "no more than are held out"
    assert seconds(rows(10, 100), 32, 256) == 0, "nothing is held out of ten rows"
    own = rows(10, 100).with_validation(rows(16, 100))
    assert seconds(own, 32, 256) == pytest.approx(seconds(many, 16, 256))


def test_truncation_shortens_and_a_sample_is_scaled_up():
    sampled = DatasetStatistics(100, 2000, 1000, (10, 30), sampled=True)
    assert truncated_tokens(sampled, 100) == 2000
    assert truncated_tokens(sampled, 20) == 1500


def test_steps_count_whole_batches_of_what_is_not_held_out():
    setup = replace(LORA, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    five = replace(HYPERPARAMETERS, held_out_rows=5)
    assert held_out_examples(rows(100, 10), five) == 5
    assert total_steps(rows(100, 10), setup, five) == 4 * 12
    with_file = rows(100, 10).with_validation(rows(20, 10))
    assert held_out_examples(with_file, five) == 0
    assert total_steps(with_file, setup, five) == 4 * 13
    assert total_steps(rows(1, 10), setup, five) == 4


def test_a_pace_moves_the_steps_and_leaves_the_rest():
    predicted = estimate_speed(SMOLLM2, replace(LORA, max_length=128), CPU, rows(130, 100), HELD_OUT)
    slower = predicted.paced(SpeedCalibration(2.0, 30))
    assert slower.tokens_per_second == predicted.tokens_per_second / 2
    assert slower.training_seconds == 2 * predicted.training_seconds
    assert slower.unpaced_step_seconds == predicted.step_seconds
    assert (slower.loading_seconds, slower.export_seconds) == (predicted.loading_seconds, predicted.export_seconds)
    assert predicted.seconds < slower.seconds < 2 * predicted.seconds
