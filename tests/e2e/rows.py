"""Small data sets that a tiny model learns by heart."""

from typing import Any

COLOURS = ["red", "green", "blue", "black", "white", "yellow", "brown", "grey"]
THINGS = ["lamp", "boat", "door", "chair"]


def chat_rows(count: int = 32) -> list[dict[str, Any]]:
    """Questions about things and their colours, in OpenAI's chat format."""
    pairs = [(colour, thing) for thing in THINGS for colour in COLOURS]
    return [
        {
            "messages": [
                {"role": "user", "content": f"Which colour has the {thing} number {number}?"},
                {"role": "assistant", "content": f"The {thing} number {number} is {colour}."},
            ]
        }
        for number, (colour, thing) in enumerate((pairs * (count // len(pairs) + 1))[:count])
    ]
