"""The price list and what a quote makes of it."""

import math

import pytest
from pydantic import ValidationError

from core.settings import PRICES, Settings
from planner.catalogue import gpus
from planner.devices import device_of
from planner.policy.candidates import quote_for


def test_the_price_list_names_devices_that_exist() -> None:
    assert set(PRICES) - {"default", "cpu"} <= {device_of(gpu).device_class for gpu in gpus()}


def test_a_price_list_needs_a_default_and_no_negative_price() -> None:
    for prices in ({"cpu": 600}, {"default": -1}):
        with pytest.raises(ValidationError):
            Settings(prices=prices)


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.id)
def test_a_quote_follows_from_seconds_and_rate(gpu) -> None:
    quote = quote_for(PRICES, device_of(gpu), 1000.0)
    assert quote.credits_per_hour == PRICES.get(device_of(gpu).device_class, PRICES["default"])
    assert quote.predicted_credits == math.ceil(1000.0 * quote.credits_per_hour / 3600)
    assert quote.billed_seconds == quote.predicted_seconds + quote.margin_seconds
    assert quote.credits == math.ceil(quote.billed_seconds * quote.credits_per_hour / 3600)
    assert quote.credits == quote.predicted_credits + quote.margin_credits
