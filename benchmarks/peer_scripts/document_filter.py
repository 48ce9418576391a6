"""The quality filter that every contestant of near_duplicates.py applies. Standard library only.

Few rules on purpose: the same ones must cost each contestant the same.
"""

MIN_WORDS, MAX_WORDS = 20, 100_000
MIN_MEAN, MAX_MEAN = 2.0, 20.0  # characters a word
MIN_LETTERS = 0.5
MAX_SAME_LINES = 0.6


def is_good(text: str) -> bool:
    """Tell whether a text passes: words, their mean length, share of letters, repeated lines."""
    num_words = text.count(" ") + text.count("\n") + 1
    if not MIN_WORDS <= num_words <= MAX_WORDS:
        return False
    if not MIN_MEAN <= len(text) / num_words <= MAX_MEAN:
        return False
    sample = text[:2000]
    if sum(map(str.isalpha, sample)) < MIN_LETTERS * len(sample):
        return False
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) - len(set(lines)) <= MAX_SAME_LINES * len(lines)
