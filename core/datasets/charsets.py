"""Which encoding a text file has: UTF-8, or Windows' own for western languages (cp1252), which Excel still writes."""

import re
from pathlib import Path

from core.datasets.sources import find_invalid_utf8, open_source

__all__ = ["UTF_8", "WESTERN", "detect_charset", "western_notice"]

UTF_8, WESTERN = "utf-8", "cp1252"
_CHUNK_BYTES = 1024 * 1024
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_RUN = re.compile(
    rb"[\xc0-\xff]{3}|[\x80-\xff]{4}"
)  # western letters with accents stand alone, others follow each other
_HIGH = re.compile(rb"[\x80-\xff]")
_VALID = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_MOST_VALID = 0.5  # of a western file's high bytes, the share that may look like UTF-8: a capital É before a quote


def detect_charset(path: Path) -> str:
    """UTF-8, or cp1252 where the file reads as western text in it.

    Raises InvalidDatasetError with line and offset for a file that is neither, such as UTF-8 with a broken character.
    """
    problem = find_invalid_utf8(path)
    if problem is None:
        return UTF_8
    if not _is_western(path):
        raise problem
    return WESTERN


def western_notice() -> tuple[str, str]:
    """The code and sentence of the notice that a file is read as cp1252."""
    return "read_as_cp1252", (
        "The file is not UTF-8; it was read as Windows-1252. Look at the letters with accents in the preview, and save "
        "it as UTF-8 if they are wrong."
    )


def _is_western(path: Path) -> bool:
    high = valid = 0
    tail = b""
    with open_source(path) as source:
        while chunk := source.read(_CHUNK_BYTES):
            data = tail + chunk
            if _UNDEFINED.search(data) or _RUN.search(data):
                return False
            high += len(_HIGH.findall(chunk))
            valid += sum(len(sequence) for sequence in _VALID.findall(chunk))
            tail = data[-3:]
    is_cut_off = re.search(rb"[\xe0-\xf4][\x80-\xbf]{1,2}$", tail) is not None  # a character of UTF-8 without its end
    return not is_cut_off and valid <= _MOST_VALID * high
