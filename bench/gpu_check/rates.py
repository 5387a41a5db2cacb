"""The ceilings that steps are judged by: copies, matrix products, attention, and the loss by the size of its chunks."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from bench.gpu_check.session import Session, clear_device
from worker.training.model.cross_entropy import LogitTransform, linear_cross_entropy
from worker.training.model.flash import flash_problem

GIB = 1 << 30
_FLASH_HEADS = ((32, 8, 128), (9, 3, 64), (8, 1, 256), (32, 32, 96), (14, 2, 64))  # heads, key heads, features
_LOSS_CHUNKS = (None, 128, 256, 512, 1024, 2048)  # rows; None: as the loop chooses


def run(session: Session) -> None:
    """Every rate, in an 8B llama's shapes."""
    small = session.rehearsing
    copies(session, (1 << 20) if small else 4 * GIB)
    products(session, *((256, 64, 128, 1000) if small else (16384, 4096, 14336, 128256)))
    if not small:
        for heads in _FLASH_HEADS:
            with session.case(f"flash attention over examples agrees, {heads}") as figures:
                figures["problem"] = flash_problem(*heads, torch.device(session.device))
    attention(session, *((256, 64, 4, 2, 16) if small else (16384, 4096, 32, 8, 128)))
    losses(session, *((100, 64, 1000) if small else (8192, 4096, 128256)))


def milliseconds(device: str, work: Callable[[], object], repeats: int = 10) -> float:
    """Median time of `work` on the device, behind three that are not timed."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        if device == "cpu":
            started = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - started))
            continue
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    return median(times)


def copies(session: Session, size: int) -> None:
    """Bytes read and written by a copy within the device."""
    with session.case("copy") as figures:
        source = torch.empty(size, dtype=torch.uint8, device=session.device)
        target = torch.empty_like(source)
        figures["ms"] = milliseconds(session.device, lambda: target.copy_(source))
        figures["gigabytes_per_second"] = 2 * size / figures["ms"] / 1e6
    clear_device()


def products(session: Session, tokens: int, hidden: int, inner: int, vocabulary: int) -> None:
    """bf16 products of a step: square, the MLP's and attention's, the head's by rows, LoRA's thin ones."""
    shapes = {
        "square": (hidden * 2, hidden * 2, hidden * 2),
        "gate": (tokens, hidden, inner),
        "down": (tokens, inner, hidden),
        "q": (tokens, hidden, hidden),
        "head, 130 rows": (130, hidden, vocabulary),
        "head, 1024 rows": (1024, hidden, vocabulary),
        "LoRA A, rank 16": (tokens, hidden, 16),
        "LoRA B, rank 16": (tokens, 16, inner),
    }
    for name, (rows, inputs, outputs) in shapes.items():
        with session.case(f"product, {name}") as figures:
            left = torch.randn(rows, inputs, device=session.device, dtype=torch.bfloat16)
            right = torch.randn(outputs, inputs, device=session.device, dtype=torch.bfloat16)
            figures["ms"] = milliseconds(session.device, lambda a=left, b=right: functional.linear(a, b))
            figures["tflops"] = 2 * rows * inputs * outputs / figures["ms"] / 1e9
    clear_device()


def attention(session: Session, tokens: int, length: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Causal attention over rows of `length`: over examples end to end, and torch's fused kernels; forward, and with
    backward."""
    flops = 2 * tokens * length * heads * head_dim  # of a causal forward

    def timed(name: str, work: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> None:
        with session.case(f"attention, {name}") as figures:
            gradient = torch.randn_like(work())
            forward = milliseconds(session.device, lambda: work().detach())
            both = milliseconds(session.device, lambda: torch.autograd.grad(work(), inputs, gradient))
            figures |= {"ms": both, "forward_ms": forward}
            figures |= {"tflops": 3.5 * flops / both / 1e9, "forward_tflops": flops / forward / 1e9}

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=session.device, dtype=torch.bfloat16, requires_grad=True)

    ends = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=session.device)
    flat = [drawn(tokens, count, head_dim) for count in (heads, kv_heads, kv_heads)]

    def over_examples() -> torch.Tensor:
        window = (-1, 0)
        return varlen_attn(*flat, ends, ends, length, length, window_size=window, enable_gqa=True)

    if not session.rehearsing:
        timed("varlen_attn", over_examples, flat)
    dense = [drawn(tokens // length, count, length, head_dim) for count in (heads, kv_heads, kv_heads)]
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for backend in (SDPBackend.MATH,) if session.rehearsing else kernels:

        def fused(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(*dense, is_causal=True, enable_gqa=True)

        timed(f"sdpa, {backend.name}", fused, dense)
    clear_device()


def losses(session: Session, tokens: int, hidden: int, vocabulary: int) -> None:
    """The loss over a vocabulary, forward and backward, by rows of a chunk; torch's and Liger's, where installed."""
    device = session.device
    head = torch.nn.Linear(hidden, vocabulary, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
    states = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,), device=device)

    def timed(name: str, work: Callable[[], torch.Tensor]) -> None:
        with session.case(f"loss of {tokens} tokens, {name}") as figures:
            clear_device()
            figures["ms"] = milliseconds(device, lambda: work().backward(), 5)
            figures["tflops"] = 4 * tokens * hidden * vocabulary / figures["ms"] / 1e9
            if device != "cpu":
                figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        states.grad = None

    for rows in _LOSS_CHUNKS:

        def ours(rows: int | None = rows) -> torch.Tensor:
            return linear_cross_entropy(states, head, labels, tokens, LogitTransform(), rows)[0]

        timed("as the loop chunks it" if rows is None else f"chunks of {rows} rows", ours)
    if hasattr(functional, "linear_cross_entropy"):  # from torch 2.13 on
        timed("torch's", lambda: functional.linear_cross_entropy(states, head.weight, labels))
    if session.rehearsing:
        return
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        session.record("loss, Liger's", skipped="liger-kernel is not installed")
        return
    theirs = LigerFusedLinearCrossEntropyLoss()
    timed("Liger's", lambda: theirs(head.weight, states, labels))
