"""Which number format a device computes in, and what that rules out."""

from planner.devices import Device, without_kernels
from planner.model.spec import ModelSpec
from planner.setup import Method

BFLOAT16_CAPABILITY = (8, 0)  # from here on tensor cores take bfloat16
BFLOAT16, FLOAT16, FLOAT32 = "bfloat16", "float16", "float32"


def dtype_on(device: Device | None) -> str:
    """The format of weights and activations: bfloat16, but for float16 on a GPU whose tensor cores do not take it and
    float32 on a CPU without instructions for it."""
    if device is not None and device.kind == "cpu" and not device.multiplies_bfloat16:
        return FLOAT32
    capability = device.compute_capability if device is not None else None
    return FLOAT16 if capability is not None and capability < BFLOAT16_CAPABILITY else BFLOAT16


def trains_on(device: Device, method: Method) -> bool:
    """Whether a method can be right in the device's format. Trained weights in float16 lose the updates that are small
    beside them, and gradients cannot be scaled up without end: only adapters, kept in float32, are trained there."""
    return method is not Method.FULL or dtype_on(device) != FLOAT16


def device_problem(device: Device, spec: ModelSpec, methods: tuple[Method, ...]) -> str | None:
    """Why none of these methods can train this model on the device, and what would; None where one can."""
    capability = device.compute_capability
    if capability is None:
        return None
    if missing := without_kernels(capability):
        return f"{device.name} cannot train: {missing}. Use such a GPU or a newer one, or a CPU."
    if dtype_on(device) != FLOAT16:
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
