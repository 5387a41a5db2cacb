"""By which names a request says what the planner's `Wishes` hold."""

from planner.plans import ADAPTER_WISHES

_IN_ADAPTER = {
    "method": "method",
    **{name: name for name in ADAPTER_WISHES},
    "lora_rank": "r",
    "lora_target_modules": "target_modules",
}
_IN_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


def param_of(wish: str) -> str:
    """The parameter that fills a field of `Wishes`, e.g. `adapter.r` for `lora_rank`."""
    if wish in _IN_ADAPTER:
        return f"adapter.{_IN_ADAPTER[wish]}"
    return f"hyperparameters.{wish}" if wish in _IN_HYPERPARAMETERS else wish
