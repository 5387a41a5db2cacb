"""What passes between a limited child and its parent: frames of a kind, a length and that many bytes."""

import struct
from enum import IntEnum

__all__ = ["HEADER", "Kind"]

HEADER = struct.Struct("<BQ")


class Kind(IntEnum):
    """What a frame holds."""

    CALL = 1  # to the child: a pickled function and its arguments
    VALUE = 2  # a value as JSON
    DONE = 3  # nothing: there are no more values
    ERROR = 4  # an error of ours as JSON
    LIMIT = 5  # the name of the limit that was reached
