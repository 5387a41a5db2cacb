"""What travels to a GPU machine without a network."""

import base64
import hashlib
import runpy
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.gpu_kit.collect import PINNED, check, pins, repack

ROOT = Path(__file__).parents[3]
KEPT = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    """A wheel with these files and a RECORD that lists them."""
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    record = "thing-1.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return path


def test_versions_are_the_projects_own() -> None:
    found = pins((ROOT / "pyproject.toml").read_text())
    assert [line.split("==")[0] for line in found] == list(PINNED)
    assert all("==" in line for line in found)


def test_a_wheel_loses_other_cuda_versions_and_stays_whole(tmp_path: Path) -> None:
    names = [*KEPT, "libbitsandbytes_cuda118.so", "libbitsandbytes_rocm62.so"]
    files = {"thing/__init__.py": b"", **{f"thing/{name}": name.encode() for name in names}}
    wheel = write_wheel(tmp_path / "thing-1-py3-none-any.whl", files)
    repack(wheel, KEPT)
    check(wheel)
    with zipfile.ZipFile(wheel) as archive:
        left = {Path(name).name for name in archive.namelist() if name.endswith(".so")}
    assert left == set(KEPT)


def test_a_wheel_without_the_wanted_cuda_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "thing-1-py3-none-any.whl", {"thing/libbitsandbytes_cpu.so": b"x"})
    with pytest.raises(LookupError, match="libbitsandbytes_cuda130"):
        repack(wheel, KEPT)


def test_a_changed_wheel_is_noticed(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "thing-1-py3-none-any.whl", {"thing/__init__.py": b"x"})
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("thing/more.py", b"y")
    with pytest.raises(ValueError, match=r"thing/more\.py"):
        check(wheel)


def test_an_older_torch_takes_the_arguments_of_the_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    shim = runpy.run_path(str(ROOT / "bench" / "gpu_kit" / "shim" / "sitecustomize.py"))
    older: Any = ModuleType("torch.nn.attention.varlen")
    older.varlen_attn = lambda query, *, scale=1.0: (query, scale)
    shim["bridge"](older)
    assert older.varlen_attn("q", scale=2.0, enable_gqa=True) == ("q", 2.0)
