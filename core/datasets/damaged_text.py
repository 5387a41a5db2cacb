"""Texts that were damaged before they came here, and marks that stand where a picture or a sound was."""

import re
from collections.abc import Iterable, Iterator

__all__ = ["text_notices"]

_LONGEST_MARK = 40


def _continuing(encoding: str) -> str:
    """What the second bytes of UTF-8's characters are in an encoding of one byte a character."""
    return re.escape(bytes(range(0x80, 0xC0)).decode(encoding, "ignore"))


_WEST = "[" + _continuing("latin-1") + _continuing("cp1252") + "]"
# A capital letter before a closing quote, a dash or a guillemet is no mistake unless a word goes on behind it.
_PUNCTUATION = "[\u00a0\u00ab\u00bb\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2020\u2022\u2026\u2039\u203a]"
_PAIR = rf"(?:{_WEST}(?<!{_PUNCTUATION})|{_PUNCTUATION}(?=\w))"
_CYRILLIC = "[" + _continuing("cp1251") + "]"
_MAC = "[º©®§∂ü•±≠°ß™¥¶∏Ä]"
# Where to look closer: most texts have no such pair of characters, and this is asked of every row.
_SUSPECT = re.compile(rf"[ÂÃÄÅâðÐÑÎÏØÙÚÛ×ãäåæçèéêëìíàïРСв√‚][{_WEST[1:-1]}{_CYRILLIC[1:-1]}{_MAC[1:-1]}]")
# UTF-8 that was read as Windows-1252 or Latin-1, as Windows-1251 (Russian) and as Mac Roman, by what it said.
_WRONGLY_DECODED = re.compile(
    rf"[ÂÃÄÅ]{_PAIR}|(?<![A-ZÀ-Þ])Ã\u00a0"  # Ã¼, Ã©, Â°, Å‚: letters with accents
    rf"|â[\u0080\u20ac\u0082\u201a\u0086\u0088\u02c6\u0089\u2030\u0094\u0095\u0098\u02dc\u009d]{_WEST}"  # â€™: quotes
    rf"|ðŸ{_WEST}{_WEST}|ð\u009f{_WEST}{_WEST}"  # emoji
    rf"|(?:[ÐÑ]{_WEST}){{2}}|(?:[ÎÏ]{_WEST}){{2}}|(?:[ØÙÚÛ]{_WEST}){{2}}|(?:×{_WEST}){{2}}"  # Cyrillic, Greek, Arabic
    rf"|(?:[ãäåæçèéêëìí]{_WEST}{_WEST}){{2}}|(?:à[¤¥¦§¨¸¹]{_WEST}){{2}}"  # Chinese, Japanese, Korean; Hindi, Thai
    rf"|(?:[РС]{_CYRILLIC}){{3}}|вЂ{_CYRILLIC}"
    r"|√[º©®§∂ü•±≠°ß™¥¶∏](?:(?=[^\W\d])|(?<=[^\W\d]√.))|‚Ä[ôúùìîò¶]"
    r"|ï»¿|ï¿½"
)
_REPLACEMENT = "\ufffd"
# What data sets of models that see, hear or watch write where a picture, a sound or a film goes.
_PLACEHOLDER = re.compile(
    r"[<\[](?:(?<![`\w'\"]<)(?:image|video|audio|speech|sound)s?[ _-]?[0-9]{0,3}>(?!`)"
    r"|(?:image_placeholder|image_soft_token|start_of_image|end_of_image|imagehere|img_context|im_patch)>"
    r"|\|(?:image|video|audio)(?:_[0-9]{1,3}|_pad)?\|>|\|vision_(?:start|end|pad)\|>|\|audio_(?:bos|eos)\|>"
    r"|(?<!\w\[)(?-i:IMG\])|img>[^<>]{1,200}</img>)",
    re.IGNORECASE,
)


def text_notices(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The code and sentence of what is wrong with the texts of one row, each code once."""
    damaged = mark = ""
    for text in texts:
        if not damaged and not text.isascii():
            damaged = _damaged(text)
        if not mark and ("<" in text or "[" in text) and (found := _PLACEHOLDER.search(text)):
            mark = found.group()[:_LONGEST_MARK]
    if damaged:
        yield "wrongly_decoded", _damage(damaged)
    if mark:
        yield "media_placeholder", _unseen(mark)


def _unseen(mark: str) -> str:
    return (
        f"A text holds {mark!r}, which stands for a picture, a sound or a film in other data sets: nothing but these "
        "letters is trained. Leave such rows out, or take the mark out of those that make sense without it."
    )


def _damaged(text: str) -> str:
    """Characters of the text that were decoded wrongly, "" where none were."""
    for suspect in _SUSPECT.finditer(text):
        if found := _WRONGLY_DECODED.match(text, suspect.start()):
            return found.group()
    return _REPLACEMENT if _REPLACEMENT in text else ""


def _damage(found: str) -> str:
    if found == _REPLACEMENT:
        return (
            "A text holds the replacement character (U+FFFD): letters were lost before it was uploaded. Save it as "
            "UTF-8 from where it still has them."
        )
    return (
        f"A text holds {found!r}: it is UTF-8 that was read in another encoding before it was uploaded, and the model "
        "would learn to write like that. Save it as UTF-8 again from where its letters are right."
    )
