"""Which number format a device computes in, and what that rules out."""

from planner.devices import Device
from planner.model_spec import ModelSpec
from planner.setup import Method

OLDEST_CAPABILITY = (7, 5)  # below, torch's CUDA 13 wheels have no kernels
BFLOAT16_CAPABILITY = (8, 0)  # from here on tensor cores take bfloat16
BFLOAT16, FLOAT16 = "bfloat16", "float16"


def dtype_on(device: Device | None) -> str:
    """The 16-bit format of weights and activations: float16 on a GPU whose tensor cores do not take bfloat16."""
    capability = device.compute_capability if device is not None else None
    return FLOAT16 if capability is not None and capability < BFLOAT16_CAPABILITY else BFLOAT16


def trains_on(device: Device, method: Method) -> bool:
    """Whether a method can be right in the device's format. Trained weights in float16 lose the updates that are small
    beside them, and gradients cannot be scaled up without end: only adapters, kept in float32, are trained there."""
    return method is not Method.FULL or dtype_on(device) == BFLOAT16


def device_problem(device: Device, spec: ModelSpec, methods: tuple[Method, ...]) -> str | None:
    """Why none of these methods can train this model on the device, and what would; None where one can."""
    capability = device.compute_capability
    if capability is None:
        return None
    if capability < OLDEST_CAPABILITY:
        return f"{too_old(device)} Use a GPU from the T4 and the RTX 20 series on, or a CPU."
    if dtype_on(device) == BFLOAT16:
        return None
    named = f"{device.name} (compute capability {capability[0]}.{capability[1]}) computes in float16, not in bfloat16"
    if not any(trains_on(device, method) for method in methods):
        return (
            f"{named}: whole weights cannot be trained so. Use lora or qlora, or a GPU of compute capability 8.0 or "
            "more (RTX 30, A10, L4 and later)."
        )
    if spec.family.outgrows_float16:
        return (
            f"{named}, and {spec.model_type} models have activations beyond float16's 65,504. Use another base model, "
            "or a GPU of compute capability 8.0 or more (RTX 30, A10, L4 and later)."
        )
    return None


def too_old(device: Device) -> str | None:
    """The sentence about a GPU that torch has no kernels for; None for any other device."""
    capability = device.compute_capability
    if capability is None or capability >= OLDEST_CAPABILITY:
        return None
    return (
        f"{device.name} has compute capability {capability[0]}.{capability[1]}; PyTorch's kernels begin at "
        f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}."
    )
