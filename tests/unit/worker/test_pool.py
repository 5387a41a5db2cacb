"""What is free of a machine's devices, and what a plan for the next job would find there."""

from dataclasses import replace

import pytest

from planner.devices import Device
from worker.pool import DevicePool

GPUS = [Device(index, "cuda", "A100", f"GPU-{index}", 80, 70, (8, 0), "a100") for index in range(2)]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> dict[str, Device]:
    """The devices as the driver has them, by uuid; a test changes them."""
    found = {device.uuid: device for device in GPUS}
    monkeypatch.setattr("worker.pool.device_again", lambda device: found[device.uuid])
    return found


def free(pool: DevicePool) -> list[str]:
    return [device.address for device in pool.free("a100")]


def test_what_is_held_is_not_free_until_it_is_let_go(now: dict[str, Device]) -> None:
    pool = DevicePool(GPUS)
    assert free(pool) == ["cuda:0", "cuda:1"]
    with pool.held(["cuda:1"]) as devices:
        assert [device.uuid for device in devices] == ["GPU-1"]
        assert free(pool) == ["cuda:0"]
        assert pool.free("h100") == []
    assert free(pool) == ["cuda:0", "cuda:1"]


def test_one_device_is_never_held_twice(now: dict[str, Device]) -> None:
    pool = DevicePool(GPUS)
    with pool.held(["cuda:0"]), pytest.raises(AssertionError, match="cuda:0 are held"), pool.held(["cuda:0", "cuda:1"]):
        pass
    assert free(pool) == ["cuda:0", "cuda:1"], "what was refused holds nothing"


def test_of_a_held_device_the_memory_from_before_is_known_beside_what_is_in_use(now: dict[str, Device]) -> None:
    pool = DevicePool(GPUS)
    now["GPU-0"] = replace(GPUS[0], free_bytes=60)
    pool.read()
    with pool.held(["cuda:0"]) as (device,):
        now["GPU-0"] = replace(GPUS[0], free_bytes=5)
        reading = pool.read()[0]
        assert (device.free_bytes, reading.device.free_bytes, reading.used_bytes) == (60, 60, 75)
    assert pool.read()[0].device.free_bytes == 5, "nothing of ours is on it any more"


def test_a_sick_device_is_left_out_and_taken_back(now: dict[str, Device]) -> None:
    pool = DevicePool(GPUS)
    now["GPU-0"] = replace(GPUS[0], problem="the driver says: GPU is lost")
    assert free(pool) == ["cuda:1"]
    with pool.held(["cuda:1"]):
        now["GPU-1"] = replace(GPUS[1], problem="too hot")
        assert pool.read()[1].device.problem == "too hot", "also while something holds it"
    now |= {device.uuid: device for device in GPUS}
    assert free(pool) == ["cuda:0", "cuda:1"]
