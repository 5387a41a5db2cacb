"""Collect what a GPU machine without a network lacks, small enough to travel: `make gpu-kit`.

Wheels go into .whl and scripts into .kit, both in the project's root and ignored by git. The machine is taken to have
torch with CUDA, accelerate, huggingface-hub, tokenizers, safetensors, pyarrow and pandas in its image, as machines for
training have. Versions are the project's, so that of the libraries that matter only torch differs there.

    .venv/bin/python bench/gpu_kit/collect.py [--python 3.12] [--cuda 130]
"""

import argparse
import base64
import csv
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

KIT = Path(__file__).resolve().parent
ROOT = KIT.parents[1]
WHEELS, SCRIPTS = ROOT / ".whl", ROOT / ".kit"
# What the training side imports, and TRL to compare with.
PINNED = ("transformers", "peft", "bitsandbytes", "orjson", "structlog", "zstandard", "trl", "liger-kernel")
# What those need beyond the image; datasets wants an older dill and multiprocess than are newest.
NEEDED = ("pydantic", "annotated-types", "typing-inspection", "datasets", "dill<0.4.2", "multiprocess<0.70.20")
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)


def main() -> None:
    """Collect, check and list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    parser.add_argument("--cuda", default="130", help="that its torch is built for, without the point")
    options = parser.parse_args()
    for folder in (WHEELS, SCRIPTS):
        shutil.rmtree(folder, ignore_errors=True)
    WHEELS.mkdir()
    shutil.copytree(KIT, SCRIPTS, ignore=shutil.ignore_patterns("__pycache__", "collect.py", "rehearse.sh"))
    requirements = [*pins((ROOT / "pyproject.toml").read_text(encoding="utf-8")), *NEEDED]
    download(options.python, requirements)
    download(options.python, [needed_by("pydantic", "pydantic-core")])
    libraries = (f"libbitsandbytes_cuda{options.cuda}.so", "libbitsandbytes_cpu.so")
    repack(next(WHEELS.glob("bitsandbytes-*.whl")), libraries)
    wheels = sorted(WHEELS.iterdir())
    for wheel in wheels:
        check(wheel)
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:6.1f} MiB  in all")


def pins(pyproject: str) -> list[str]:
    """The project's own pins of what travels."""
    project = tomllib.loads(pyproject)["project"]
    wanted = [
        *project["dependencies"],
        *(line for group in project["optional-dependencies"].values() for line in group),
    ]
    found = {re.split(r"[=<>\[;]", line)[0]: line for line in wanted}
    return [found[name] for name in PINNED]


def download(python: str, requirements: list[str]) -> None:
    """Wheels for the GPU machine. Raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    subprocess.run([*command, "--dest", str(WHEELS), *requirements], check=True)


def needed_by(package: str, dependency: str) -> str:
    """The requirement of one wheel on another, as pip takes it. Raises LookupError where there is none."""
    with zipfile.ZipFile(next(WHEELS.glob(f"{package}-*.whl"))) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))
    found = re.search(rf"^Requires-Dist: ({dependency}\s*==[^;\s]+)", metadata.decode(), re.MULTILINE)
    if found is None:
        raise LookupError(f"{package} does not pin {dependency}.")
    return found[1]


def repack(wheel: Path, libraries: tuple[str, ...]) -> None:
    """Leave out the shared libraries but these, and their lines of RECORD. Raises LookupError where one is missing."""
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as sink:
        names = source.namelist()
        if missing := set(libraries) - {Path(name).name for name in names}:
            raise LookupError(f"{wheel.name} has no {', '.join(sorted(missing))}.")
        dropped = {name for name in names if name.endswith(".so") and Path(name).name not in libraries}
        for entry in source.infolist():
            if entry.filename in dropped:
                continue
            data = source.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                rows = [row for row in csv.reader(io.StringIO(data.decode())) if row and row[0] not in dropped]
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(rows)
                data = text.getvalue().encode()
            sink.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    smaller.rename(wheel)


def check(wheel: Path) -> None:
    """Raise ValueError where a file of the wheel is not what its RECORD says, or the other way round."""
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        listed = {row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(record).decode())) if row}
        files = {name for name in archive.namelist() if not name.endswith("/")}
        if different := files ^ set(listed):
            raise ValueError(f"{wheel.name}: RECORD and contents differ in {sorted(different)[:3]}.")
        for name, wanted in listed.items():
            algorithm, _, digest = wanted.partition("=")
            if not wanted:
                continue
            found = base64.urlsafe_b64encode(hashlib.new(algorithm, archive.read(name)).digest()).rstrip(b"=").decode()
            if found != digest:
                raise ValueError(f"{wheel.name}: {name} is not what RECORD says.")


if __name__ == "__main__":
    main()
