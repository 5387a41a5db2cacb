"""Texts whose characters take two bytes or four, told by their byte order mark or by how they read without one."""

import codecs
import unicodedata

__all__ = ["wide_encoding"]

_ENCODINGS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_LOOKED_AT_BYTES = 64 * 1024
_MOST_ODD = 0.02  # of the characters: those that nobody types, such as form feeds
_MOST_PRINTABLE = 0.7  # of the bytes: more is a text in one byte a character that holds stray zeros
_BLANKS = "\t\n\r"


def wide_encoding(head: bytes) -> str | None:
    """The encoding of a file that begins with `head`, if it is UTF-16 or UTF-32; None for every other.

    Every alphabet is told: a line break, a comma or a quote has a zero byte beside it, and the wrong order or width
    makes letters that do not exist of the others.
    """
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = head[:_LOOKED_AT_BYTES]
    if b"\0" not in head:
        return None
    printable = sum(32 <= byte < 127 for byte in head)
    if printable > _MOST_PRINTABLE * len(head) or _is_utf8(head):
        return None
    likely = {encoding: _usual_characters(head, encoding) for encoding in _ENCODINGS}
    best = max(likely, key=lambda encoding: likely[encoding])
    return best if likely[best] > 0 else None


def _is_utf8(head: bytes) -> bool:
    """Whether letters beyond ASCII are UTF-8's, as by chance they never are."""
    try:
        return not codecs.getincrementaldecoder("utf-8")().decode(head).isascii()
    except UnicodeDecodeError:
        return False


def _usual_characters(head: bytes, encoding: str) -> float:
    """The share of blanks and ASCII in what the bytes are in this encoding; 0 where that is no text."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return 0.0
    if not text or "\0" in text:
        return 0.0
    odd = sum(unicodedata.category(character) in ("Cc", "Cn", "Co") and character not in _BLANKS for character in text)
    if odd > _MOST_ODD * len(text):
        return 0.0
    return sum(character.isascii() for character in text) / len(text)
