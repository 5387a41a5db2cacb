"""A data set to try the service with: the support desk of Lanternfish, a maker of lighthouse lamps that does not exist.

Every answer greets the captain, gives two numbered steps, signs as Finn and files the case under its topic, so one
look tells a trained model from an untrained one.
"""

from pathlib import Path

__all__ = ["UNSEEN_PROMPTS", "sample_path"]

UNSEEN_PROMPTS: tuple[str, ...] = (
    "My Harbor lamp keeps switching itself off after ten minutes.",
    "Do you ship to Norway, and what does it cost?",
    "I spilled coffee on the linen shade. What now?",
    "Which of your lamps would suit a small boat?",
)


def sample_path() -> Path:
    """The data set: JSON Lines, 145 conversations in OpenAI's chat format."""
    return Path(__file__).with_name("lanternfish_support.jsonl")
