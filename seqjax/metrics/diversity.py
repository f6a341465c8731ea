"""How varied texts are. A text is a sequence of tokens: ids, words or characters."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from seqjax.errors import InputError


def distinct(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """Distinct-n: how many of the n-grams are different (Li et al., 2016).

        distinct = |{n-grams}| / number of n-grams

    over all texts together; no n-gram reaches from one text into the next. It falls with the amount of text: compare
    texts of the same number and lengths. 1 - distinct-n of a single text is its rate of repetition, seq-rep-n (Welleck
    et al., 2020).

    Args:
      texts: each a sequence of tokens.
      n: tokens of an n-gram.

    Returns:
      a share between 0 and 1; NaN where no text has n tokens.

    Raises:
      InputError: n is below 1.

    >>> distinct(["the cat saw the cat".split()], 2)  # the cat, cat saw, saw the
    0.75
    """
    if n < 1:
        raise InputError(f"n={n}; an n-gram has at least 1 token.")
    counts = Counter(gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False))
    return len(counts) / counts.total() if counts else math.nan


def entropy(texts: Iterable[Sequence[Hashable]]) -> float:
    """Entropy of the tokens' own frequencies, in bits per token (Shannon, 1948).

        H = -Σ_v p_v log₂ p_v,   p_v = count of v / number of tokens

    Like `distinct` it depends on the amount of text: a short one has seen few tokens.

    Args:
      texts: each a sequence of tokens, counted together.

    Returns:
      H; NaN where there is no token.

    >>> entropy(["aabb", "cc"])  # log₂ 3
    1.584962500721156
    """
    counts = Counter(token for text in texts for token in text)
    shares = [count / counts.total() for count in counts.values()]
    return 0.0 - sum(p * math.log2(p) for p in shares) if counts else math.nan
