"""Corrections and their coverage."""

import random

import pytest

from planner.calibration import LARGEST_PACE, Observation, correction, speed_calibration
from planner.errors import InvalidSetupError
from planner.memory.estimate import Correction, estimate_memory
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup
from planner.throughput import SpeedCalibration

ESTIMATE = estimate_memory(ModelSpec.from_config({"model_type": "mistral"}), TrainingSetup(Method.FULL))


def runs(count, seed=0):
    draw = random.Random(seed)
    return [Observation(10**9, int(10**9 * draw.lognormvariate(0.05, 0.02))) for _ in range(count)]


def test_without_history_the_estimate_and_its_bound_stay():
    assert correction([]) == Correction()
    few = ESTIMATE.corrected(correction(runs(12)))
    assert (few.device_bytes, few.bound_bytes) == (ESTIMATE.device_bytes, ESTIMATE.bound_bytes)


def test_some_history_corrects_the_ratio_and_keeps_the_shipped_bound():
    learned = correction(runs(60))
    assert learned.ratio == pytest.approx(1.05, abs=0.01)
    assert learned.bound_share is None
    corrected = ESTIMATE.corrected(learned)
    assert corrected.device_bytes == round(ESTIMATE.device_bytes * learned.ratio)
    assert corrected.bound_bytes == ESTIMATE.bound_bytes
    assert corrected.uncorrected_bytes == pytest.approx(ESTIMATE.device_bytes, abs=1)


def test_enough_history_gives_a_bound_that_covers_99_of_100_later_runs():
    covered = []
    for seed in range(40):
        learned = correction(runs(400, seed))
        assert learned.bound_share is not None
        later = runs(100, seed + 1000)
        limit = learned.ratio * (1 + learned.bound_share)
        covered += [run.measured_bytes <= run.predicted_bytes * limit for run in later]
    assert sum(covered) / len(covered) >= 0.988


def test_a_bound_needs_99_runs_to_hold_it_against():
    assert correction(runs(197)).bound_share is None
    assert correction(runs(198)).bound_share is not None


def test_impossible_observations_are_refused():
    with pytest.raises(InvalidSetupError):
        correction([Observation(0, 5)])


def timed(ratio):
    return Observation(1, 1, 2.0, 2.0 * ratio)


def test_the_speed_is_corrected_by_the_median_of_enough_runs():
    ratios = [1.2] * 6 + [9.0] * 2 + [0.1] * 2
    assert speed_calibration([timed(ratio) for ratio in ratios[:9]]) == SpeedCalibration(runs=9)
    assert speed_calibration([timed(ratio) for ratio in ratios]) == SpeedCalibration(pytest.approx(1.2), 10)
    assert speed_calibration([Observation(1, 1)] * 20) == SpeedCalibration()


@pytest.mark.parametrize(("ratio", "bounded"), [(100.0, LARGEST_PACE), (0.001, 1 / LARGEST_PACE)])
def test_a_corrected_speed_stays_within_bounds(ratio, bounded):
    assert speed_calibration([timed(ratio)] * 10) == SpeedCalibration(bounded, 10)
