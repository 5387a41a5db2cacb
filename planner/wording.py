"""Sizes and times as people say them."""

GIB = 1 << 30
MIB = 1 << 20


def gib(size_bytes: float) -> str:
    """A size as people compare it with a device."""
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB" if size_bytes >= MIB else f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes < 100 * GIB else f"{size_bytes / GIB:.0f} GiB"


def duration(seconds: float) -> str:
    """A time in the units people think in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes >= 2 * 24 * 60:
        return counted(round(minutes / (24 * 60)), "day")
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(number: int, noun: str) -> str:
    """How many of a thing there are: 1 row, 2,000 rows. For nouns whose plural ends in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
