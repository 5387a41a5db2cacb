"""Examples into rows of limited length."""

from bisect import bisect_left, insort
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, ...]  # example numbers; several when packed


def pack(lengths: NDArray[np.int64], order: Iterable[int], capacity: int) -> list[Row]:
    """Best-fit decreasing: longest first, each into the fullest row that still has room for it.

    Equal lengths keep `order`; the number of rows depends on the lengths alone. An example longer than `capacity`
    gets a row of its own.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for example in sorted(order, key=lambda number: -int(lengths[number])):
        length = int(lengths[example])
        place = bisect_left(free, (length, -1))
        if place < len(free):
            room, row = free.pop(place)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(example)
        insort(free, (room - length, row))
    return [tuple(row) for row in rows]
