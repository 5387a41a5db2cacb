"""A bridge between the project's torch and an older one that a GPU machine's image has.

torch 2.11's `varlen_attn` has no `enable_gqa`, though its kernels take grouped heads; 2.13's has. Every Python process
that is started with this folder on PYTHONPATH has the bridge, and nothing is imported before the project asks for it.
"""

import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

BRIDGED = "torch.nn.attention.varlen"


def bridge(module: ModuleType) -> None:
    """Let `varlen_attn` take `enable_gqa` where it does not."""
    plain = module.varlen_attn
    if "enable_gqa" in inspect.signature(plain).parameters:
        return

    def varlen_attn(*args: Any, enable_gqa: bool = False, **options: Any) -> Any:  # noqa: ARG001 - always as if it were
        return plain(*args, **options)

    module.varlen_attn = varlen_attn  # type: ignore[attr-defined]


class Loader(importlib.abc.Loader):
    """Loads the module as ever, then bridges it."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._plain.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._plain.exec_module(module)
        bridge(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the one module, as Python would."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != BRIDGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())
