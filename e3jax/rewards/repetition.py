"""How often a response says the same ten words: LIE's rule for text that goes round in circles (2602.11748, code)."""

from collections import Counter

WINDOW = 10  # words; LIE's code


def most_repeats(text: str, *, window: int = WINDOW) -> int:
    """Return how often the most frequent run of `window` words occurs, overlapping ones counted; 0 in shorter texts.

    Words end at blanks and underscores. Linear in the text.

    >>> most_repeats("no no no no", window=2), most_repeats("a b c", window=3), most_repeats("a_b a b", window=2)
    (3, 0, 2)
    """
    words = text.replace("_", " ").split()
    if len(words) <= window:
        return 0
    return max(Counter(zip(*(words[i:] for i in range(window)))).values())
