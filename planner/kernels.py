"""The kernels that a run takes on a device: its number format, its attention, and what is fused."""

from dataclasses import replace

from planner import constants as c
from planner.devices import Device
from planner.model.spec import ModelSpec
from planner.precision import dtype_on
from planner.setup import VARLEN_FLASH, TrainingSetup

# What Liger has a gated kernel for: LigerSiLUMulFunction and LigerGELUMulFunction of liger_kernel/ops.
LIGER_ACTIVATIONS = frozenset({"silu", "swish", "gelu_pytorch_tanh"})
FLASH_CAPABILITY = (8, 0)  # that torch's flash attention wants: check_sm_version<sm80, sm121> of sdp_utils.cpp


def attention_on(spec: ModelSpec, device: Device | None) -> str:
    """The attention implementation. Rows take flash attention for variable lengths, packed or not, where the device has
    its kernels and the family is known to let attention see where examples end: rows of one example are laid end to
    end then, without padding or a mask. On a device that is not known yet they do not."""
    if spec.family.eager_attention_only:
        return "eager"
    if spec.is_introspected or device is None or device.compute_capability is None:
        return "sdpa"
    # flash_api.cpp, mha_varlen_fwd: head sizes in steps of 8
    fits_kernel = spec.head_dim <= c.LONGEST_FLASH_HEAD and spec.head_dim % 8 == 0
    return VARLEN_FLASH if fits_kernel and device.compute_capability >= FLASH_CAPABILITY else "sdpa"


def with_kernels(setup: TrainingSetup, spec: ModelSpec, device: Device) -> TrainingSetup:
    """The setup in the number format that the device computes in, with what can be fused there.

    Of a family's norm, rotary embedding and activation each has its kernel, torch's or Liger's, where its code is what
    that kernel computes. Compiled layers fuse rotary embedding and activation by themselves: it is either of the two.
    """
    setup = replace(setup, dtype=dtype_on(device), fused_norms=False, fused_rotary=False, fused_activation=False)
    if device.kind != "cuda" or spec.is_introspected:
        return setup
    by_hand = device.has_liger and not setup.torch_compile
    return replace(
        setup,
        # torch's kernel is for norms that are scaled after they are cast back, Liger's for the others too.
        fused_norms=by_hand or not spec.family.float32_norm_weight,
        fused_rotary=by_hand and not spec.family.own_rotary,
        fused_activation=by_hand and spec.activation in LIGER_ACTIVATIONS and spec.has_gated_mlp,
    )
