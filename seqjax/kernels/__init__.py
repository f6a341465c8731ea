"""How recurrences, attention and the cross-entropy of large vocabularies are made fast.

Users call ``seqjax.unroll``, `seqjax.attention` and `seqjax.losses`. Every implementation of a recurrence here has the
one signature

    (cell, params, start, carry, xs, valid, resets, reverse) -> (carry, ys)

with xs [T, B, D], ``start`` the carry a reset restores, ``valid`` and ``resets`` bool [T, B] or None.
"""
