"""GPUs: memory as the driver reports it, dense bf16 tensor FLOP/s with float32 accumulation, memory bandwidth.

Figures are those of NVIDIA's data sheets. Turing cards have no bf16 units: theirs are fp16 figures.
"""

import re
from dataclasses import dataclass

GIB = 1 << 30
# What the driver keeps for itself and for ECC: an A100-80GB reports 79.3 GiB to torch, a 4090 23.6, a T4 14.6.
_REPORTED_SHARE = 0.985
_SIZE_TOLERANCE = 0.12  # ECC and the driver take up to a tenth of what a card is sold with


@dataclass(frozen=True)
class CatalogueGpu:
    """One kind of GPU."""

    id: str
    title: str
    memory_gib: int  # as sold
    bf16_flops: float  # dense, per second
    bandwidth_bytes: float  # per second
    compute_capability: tuple[int, int]

    @property
    def total_bytes(self) -> int:
        """Memory that the driver reports."""
        return int(self.memory_gib * GIB * _REPORTED_SHARE)


def _gpu(name: str, memory: int, tera_flops: float, giga_bytes: float, capability: tuple[int, int]) -> CatalogueGpu:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return CatalogueGpu(slug, f"NVIDIA {name}", memory, tera_flops * 1e12, giga_bytes * 1e9, capability)


_GPUS = (
    _gpu("T4 16GB", 16, 65, 320, (7, 5)),
    _gpu("RTX 2080 Ti 11GB", 11, 54, 616, (7, 5)),
    _gpu("RTX 3060 12GB", 12, 25, 360, (8, 6)),
    _gpu("RTX 3080 10GB", 10, 60, 760, (8, 6)),
    _gpu("RTX 3090 24GB", 24, 71, 936, (8, 6)),
    _gpu("RTX A4000 16GB", 16, 77, 448, (8, 6)),
    _gpu("RTX A5000 24GB", 24, 111, 768, (8, 6)),
    _gpu("RTX A6000 48GB", 48, 155, 768, (8, 6)),
    _gpu("A10 24GB", 24, 125, 600, (8, 6)),
    _gpu("A10G 24GB", 24, 70, 600, (8, 6)),
    _gpu("A30 24GB", 24, 165, 933, (8, 0)),
    _gpu("A40 48GB", 48, 150, 696, (8, 6)),
    _gpu("A100 40GB", 40, 312, 1555, (8, 0)),
    _gpu("A100 80GB", 80, 312, 2039, (8, 0)),
    _gpu("RTX 4060 Ti 16GB", 16, 44, 288, (8, 9)),
    _gpu("RTX 4070 12GB", 12, 58, 504, (8, 9)),
    _gpu("RTX 4080 16GB", 16, 97, 717, (8, 9)),
    _gpu("RTX 4090 24GB", 24, 165, 1008, (8, 9)),
    _gpu("L4 24GB", 24, 121, 300, (8, 9)),
    _gpu("L40 48GB", 48, 181, 864, (8, 9)),
    _gpu("L40S 48GB", 48, 362, 864, (8, 9)),
    _gpu("RTX 6000 Ada 48GB", 48, 364, 960, (8, 9)),
    _gpu("H100 PCIe 80GB", 80, 756, 2039, (9, 0)),
    _gpu("H100 80GB", 80, 989, 3352, (9, 0)),
    _gpu("GH200 96GB", 96, 989, 4000, (9, 0)),
    _gpu("H200 141GB", 141, 989, 4800, (9, 0)),
    _gpu("B200 180GB", 180, 2250, 8000, (10, 0)),
    _gpu("RTX 5080 16GB", 16, 113, 960, (12, 0)),
    _gpu("RTX 5090 32GB", 32, 210, 1792, (12, 0)),
    _gpu("RTX PRO 6000 Blackwell 96GB", 96, 503, 1792, (12, 0)),
)


def gpus() -> tuple[CatalogueGpu, ...]:
    """All known GPUs."""
    return _GPUS


def find_gpu(name: str) -> CatalogueGpu | None:
    """The GPU of that name, however it is written ("A100-80GB", "nvidia a100 80gb", "H100"); None if unknown.

    Without a size, the smallest card of the name.
    """
    words = re.sub(r"[^a-z0-9]+", "", name.lower()).removeprefix("nvidia").removeprefix("geforce")
    for gpu in _GPUS:
        if gpu.id.replace("-", "") == words:
            return gpu
    bare = [gpu for gpu in _GPUS if _bare(gpu) == words]
    return min(bare, key=lambda gpu: gpu.memory_gib, default=None)


def match_driver_name(name: str, total_bytes: int) -> CatalogueGpu | None:
    """The GPU that the driver calls `name` ("NVIDIA A100-SXM4-80GB"), told apart by size; None if unknown."""
    letters = re.sub(r"nvidia|geforce|tesla|quadro|[^a-z0-9]", "", name.lower())
    fitting = [gpu for gpu in _GPUS if letters.startswith(_bare(gpu)) and _size_matches(gpu, total_bytes)]
    return max(fitting, key=lambda gpu: len(_bare(gpu)), default=None)


def _bare(gpu: CatalogueGpu) -> str:
    return re.sub(r"\d{1,5}gb$", "", gpu.id).replace("-", "")


def _size_matches(gpu: CatalogueGpu, total_bytes: int) -> bool:
    return abs(total_bytes / GIB / gpu.memory_gib - 1) < _SIZE_TOLERANCE
