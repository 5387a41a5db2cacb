"""Bodies of a form as no browser of ours would send them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

__all__ = ["Body", "hostile_bodies", "hostile_values"]

VALUES = {
    "NUL": "a\0b",
    "fraction": "½",
    "superscript": "²",
    "another script's digit": "٣",
    "26 digits": "9" * 26,
    "more digits than Python reads": "9" * 5000,
    "below zero": "-1",
    "exponent": "1e400",
    "not a number": "nan",
    "noncharacter": "\u202e\uffff",
    "folder above": "../../etc/passwd",
    "empty": "",
}
URL_ENCODED = "application/x-www-form-urlencoded"
# What the header may name: Python's codecs, of which some refuse in words of their own, or make half characters.
CHARSETS = ("unicode_escape", "undefined", "idna", "punycode", "utf-7", "utf-16", "rot13", "zlib", "a\\b", "x" * 500)


@dataclass(frozen=True)
class Body:
    """A body, the type it is sent as, and what is wrong with it."""

    wrong: str
    content: bytes | None
    content_type: str | None = URL_ENCODED


def hostile_values(fields: Sequence[str], csrf_token: str, more_fields: Sequence[str] = ()) -> Iterator[Body]:
    """Well-formed bodies with the right token: a value in all fields, then in one of `fields` while the rest are 1."""
    right = {"csrf_token": csrf_token}
    for label, value in VALUES.items():
        yield Body(f"{label} in all", urlencode(dict.fromkeys([*fields, *more_fields], value) | right).encode())
    plausible = dict.fromkeys(fields, "1") | right
    for label, value in VALUES.items():
        for name in fields:
            yield Body(f"{label} in {name}", urlencode(plausible | {name: value}).encode())
    for name in ("csrf_token", *fields[:1]):
        yield Body(f"a megabyte in {name}", urlencode(plausible | {name: "a" * 10**6}).encode())


def hostile_bodies(fields: Sequence[str], csrf_token: str) -> Iterator[Body]:
    """Bodies that are no such form at all, or hardly."""
    right = {"csrf_token": csrf_token}
    plausible = dict.fromkeys(fields, "1") | right
    pairs = urlencode(plausible)
    yield Body("no token", urlencode(dict.fromkeys(fields, "1") | {"csrf_token": ""}).encode())
    yield Body("every field twice", f"{pairs}&{urlencode(dict.fromkeys(plausible, 'x'))}&{pairs}".encode())
    yield Body("half a surrogate pair", urlencode(right).encode() + b"".join(_raw(fields, b"%ed%a0%80")))
    yield Body("not UTF-8", urlencode(right).encode() + b"".join(_raw(fields, b"\xff%ff%")))
    yield Body("too many fields", (pairs + "&x=1" * 3000).encode())
    yield Body("none", None, None)
    yield Body("an empty one", b"")
    yield Body("no type", pairs.encode(), None)
    yield Body("a type that is none", pairs.encode(), ";;=\xff")
    yield Body("text", pairs.encode(), "text/plain")
    yield Body("JSON", b'{"csrf_token": ["\\ud800"], "name": 9e999}', "application/json")
    yield Body("broken JSON", b"[" * 50_000, "application/json")
    yield from _multipart(fields, csrf_token)


def _raw(fields: Sequence[str], value: bytes) -> Iterator[bytes]:
    return (b"&" + name.encode() + b"=" + value for name in fields)


def _multipart(fields: Sequence[str], csrf_token: str) -> Iterator[Body]:
    kind = "multipart/form-data; boundary=edge"
    token = _part("csrf_token", csrf_token.encode())
    texts = token + b"".join(_part(name, b"1") for name in fields)
    files = b"".join(_part(name, b"\0\xff", "; filename=a.txt") for name in ("csrf_token", *fields))
    yield Body("files where text is expected", files + b"--edge--\r\n", kind)
    yield Body("files beside the token", token + files + b"--edge--\r\n", kind)
    yield Body("no end", texts, kind)
    yield Body("cut within a part", texts[:-9], kind)
    yield Body("another boundary", texts, "multipart/form-data; boundary=other")
    yield Body("no boundary", texts, "multipart/form-data")
    yield Body("an empty boundary", texts, "multipart/form-data; boundary=")
    yield Body("a boundary of 8,000 characters", texts, f"multipart/form-data; boundary={'b' * 8000}")
    yield Body("a boundary that is no ASCII", texts, "multipart/form-data; boundary=\xe9dge")
    yield Body(
        "a part without a name", token + b"--edge\r\ncontent-disposition: form-data\r\n\r\n1\r\n--edge--\r\n", kind
    )
    yield Body("a part without headers", token + b"--edge\r\n\r\n1\r\n--edge--\r\n", kind)
    yield Body("a part with a header of no kind", token + b"--edge\r\n\0\xff: \xff\r\n\r\n1\r\n--edge--\r\n", kind)
    yield Body("text behind the end", texts + b"--edge--\r\n--edge--" + b"x" * 1000, kind)
    yield Body("parts above the limit", _part("x", b"1") * 3000 + b"--edge--\r\n", kind)
    halves = token + b"".join(_part(name, b"\\ud800\xff+AGEx") for name in fields) + b"--edge--\r\n"
    for charset in CHARSETS:
        yield Body(f"in {charset[:20]}", halves, f"{kind}; charset={charset}")


def _part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--edge\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"
