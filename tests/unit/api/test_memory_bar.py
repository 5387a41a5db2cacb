"""The memory bar adds up to what a run needs."""

import pytest

from api.dashboard.memory_bar import WIDTH, draw, terms_of
from planner.catalogue import find_gpu, find_model
from planner.devices import device_of
from planner.memory.estimate import Correction
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.policy.candidates import Question
from planner.policy.comparison import compare_methods
from planner.statistics import DatasetStatistics

DATA = DatasetStatistics(examples=200, tokens=60_000, trained_tokens=30_000, token_lengths=tuple([300] * 200))


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "llama-3.1-8b", "mixtral-8x7b-instruct-v0.1"])
@pytest.mark.parametrize("ratio", [0.4, 1.0, 1.3])
def test_terms_add_up(model: str, ratio: float) -> None:
    entry, gpu = find_model(model), find_gpu("rtx-4090-24gb")
    assert entry is not None
    assert gpu is not None
    device = device_of(gpu)
    spec = ModelSpec.from_config(entry.config)
    for one in compare_methods(Question(spec, DATA, [device], RequestedConfig(), {"default": 100})):
        memory = one.memory.corrected(Correction(ratio=ratio, runs=3)) if ratio != 1.0 else one.memory
        terms = terms_of(memory)
        assert sum(terms.values()) == memory.required_bytes
        assert min(terms.values()) >= 0
        bar = draw(memory, device.free_bytes, memory.required_bytes)
        assert bar.terms[-1].x + bar.terms[-1].width == pytest.approx(WIDTH, abs=0.1)
