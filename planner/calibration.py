"""Learn from finished runs: how far predictions were off here, and a bound that holds for 99 of 100 runs.

The caller passes the runs that are alike: same device class, same library versions, same method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from planner.errors import InvalidSetupError
from planner.memory.estimate import Correction
from planner.setup import Method
from planner.throughput import SpeedCalibration

COVERAGE = 0.99  # share of runs at or below prediction plus bound
RATIO_RUNS = 10  # finished runs before the prediction is corrected at all
TIMED_RUNS = 10  # finished runs before the predicted speed is corrected at all
LARGEST_PACE = 4.0  # a step that takes longer than so many times its prediction, or so much less, is another machine


@dataclass(frozen=True)
class Learned:
    """What finished runs say of memory and of speed, by device class and method."""

    corrections: Mapping[tuple[str, Method], Correction] = field(default_factory=dict)
    speed_calibrations: Mapping[tuple[str, Method], SpeedCalibration] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """What one finished run was predicted to need and what it needed, in device bytes."""

    predicted_bytes: int
    measured_bytes: int

    # Of an optimizer step; None where none was timed.
    predicted_seconds: float | None = None
    measured_seconds: float | None = None


def speed_calibration(observations: Sequence[Observation]) -> SpeedCalibration:
    """The median of measured over predicted seconds of a step, bounded; as predicted until there are enough runs."""
    ratios = [
        o.measured_seconds / o.predicted_seconds
        for o in observations
        if o.measured_seconds is not None and o.predicted_seconds
    ]
    if len(ratios) < TIMED_RUNS:
        return SpeedCalibration(runs=len(ratios))
    return SpeedCalibration(min(max(median(ratios), 1 / LARGEST_PACE), LARGEST_PACE), len(ratios))


def correction(observations: Sequence[Observation]) -> Correction:
    """The correction that these runs, oldest first, support.

    Split conformal prediction (Vovk et al. 2005; Lei et al. 2018): the ratio is the median over one half of the runs,
    the bound is the ceil(0.99 (n + 1))-th smallest shortfall among the n runs of the other half. The next run, if
    exchangeable with them, stays at or below prediction plus bound with probability 0.99 or more. That rank exists
    from n = 99 on; until then the shipped bound applies.

    Raises InvalidSetupError for an observation that is not positive.
    """
    if any(o.predicted_bytes < 1 or o.measured_bytes < 1 for o in observations):
        raise InvalidSetupError("An observation needs predicted and measured bytes above 0.")
    ratios = [o.measured_bytes / o.predicted_bytes for o in observations]
    fitting, holding = ratios[0::2], ratios[1::2]
    if len(fitting) < RATIO_RUNS:
        return Correction(runs=len(ratios))
    ratio = median(fitting)
    rank = math.ceil(COVERAGE * (len(holding) + 1))
    if rank > len(holding):
        return Correction(ratio, None, len(ratios))
    shortfall = sorted(value / ratio - 1 for value in holding)[rank - 1]
    return Correction(ratio, max(0.0, shortfall), len(ratios))
