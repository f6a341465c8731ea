"""Slow, obvious code against which the library is checked: NumPy equations and plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np

import seqjax


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elman(p, carry, x):
    h = np.tanh(x @ p["w_x"] + p["b"] + carry["h"] @ p["w_h"])
    return {"h": h}, h


def lstm(p, carry, x):
    i, f, g, o = np.split(x @ p["w_x"] + p["b"] + carry["h"] @ p["w_h"], 4)
    c = sigmoid(f) * carry["c"] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return {"h": h, "c": c}, h


def gru(p, carry, x):
    h = carry["h"]
    x_r, x_z, x_n = np.split(x @ p["w_x"] + p["b"], 3)
    h_r, h_z, h_n = np.split(h @ p["w_h"] + p["b_h"], 3)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    h = (1 - z) * np.tanh(x_n + r * h_n) + z * h
    return {"h": h}, h


def gru_cho(p, carry, x):
    h = carry["h"]
    x_r, x_z, x_n = np.split(x @ p["w_x"] + p["b"], 3)
    h_r, h_z = np.split(h @ p["w_h"], 2)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    h = z * h + (1 - z) * np.tanh(x_n + (r * h) @ p["w_g"])
    return {"h": h}, h


EQUATIONS = {"elman": elman, "lstm": lstm, "gru": gru, "gru_cho": gru_cho}


def order(length, reverse):
    """(t, where a reset before step t is marked) in the order of the steps."""
    if reverse:
        return [(t, t + 1 if t + 1 < length else None) for t in reversed(range(length))]
    return [(t, t) for t in range(length)]


step = jax.jit(seqjax.step, static_argnames="cell")


def loop(cell, params, xs, carry, lengths=None, resets=None, reverse=False):
    """``seqjax.unroll`` as a literal loop over rows and steps; returns (carry, ys)."""
    steps, batch, _ = xs.shape
    start = seqjax.initial_carry(cell, params, jnp.zeros_like(xs[:1, 0]))
    finals, outputs = [], []
    for b in range(batch):
        row = start if carry is None else jax.tree.map(lambda a: a[b : b + 1], carry)  # noqa: B023
        nothing = jnp.zeros_like(step(cell, params, None, xs[0, :1])[1])
        ys = [nothing] * steps
        for t, mark in order(steps if lengths is None else int(lengths[b]), reverse):
            if resets is not None and mark is not None and resets[mark, b]:
                row = start
            row, ys[t] = step(cell, params, row, xs[t, b : b + 1])
        finals.append(row)
        outputs.append(jnp.concatenate(ys))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *finals), jnp.stack(outputs, axis=1)


def random_like(rng, tree, scale=0.5):
    """The same tree with every entry random and non-zero: weights, biases, gains, states."""
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), tree)
