"""How recurrences are made fast. Users call ``seqjax.unroll``; every implementation here has the one signature

    (cell, params, start, carry, xs, valid, resets, reverse) -> (carry, ys)

with xs [T, B, D], ``start`` the carry a reset restores, ``valid`` and ``resets`` bool [T, B] or None.
"""
