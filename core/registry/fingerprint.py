"""What tells one state of a model's directory from another, as a commit does for a repository of the hub."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

CONTENTS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")  # what plans and encoding read
WEIGHTS = "*.safetensors"
SAMPLES, SAMPLE_BYTES = 32, 4096  # of each file of weights
LENGTH_BYTES = 8  # of a safetensors header's length, in front of it
LONGEST_HEADER_BYTES = 100_000_000  # as the safetensors library


def fingerprint(directory: Path) -> str:
    """A SHA-256 over configuration and tokenizer, and over each weight file's size, header and samples of its numbers.

    Weights of another training differ everywhere, so samples tell them apart without reading tens of gigabytes. Times
    and places of the files do not count: a copy on another machine has the same fingerprint. Raises OSError.
    """
    stats = ((path, path.stat()) for path in _files(directory))
    return _fingerprint(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


def _files(directory: Path) -> Iterator[Path]:
    yield from sorted({path for pattern in (*CONTENTS, WEIGHTS) for path in directory.glob(pattern)})


@lru_cache(maxsize=64)
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size_bytes, _changed_at in files:
        digest.update(f"{path.name}\0{size_bytes}\0".encode())
        with path.open("rb") as file:
            if path.match(WEIGHTS):
                for piece in _weights(file, size_bytes):
                    digest.update(piece)
            else:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _weights(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    yield file.read(min(length, LONGEST_HEADER_BYTES))
    start = min(LENGTH_BYTES + length, size_bytes)  # a torn file says what it likes
    for sample in range(SAMPLES):
        file.seek(start + max(0, size_bytes - start - SAMPLE_BYTES) * sample // (SAMPLES - 1))
        yield file.read(SAMPLE_BYTES)
