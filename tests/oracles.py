"""Slow, obvious code against which the library is checked: NumPy equations and plain Python loops."""

import itertools

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


def mgu(p, carry, x):
    h, d_hidden = carry["h"], len(carry["h"])
    # One matrix over [h, x] for each of f and h̃, as in the paper.
    w_f = np.concatenate([p["w_h"], p["w_x"][:, :d_hidden]])
    w_n = np.concatenate([p["w_g"], p["w_x"][:, d_hidden:]])
    f = sigmoid(np.concatenate([h, x]) @ w_f + p["b"][:d_hidden])
    candidate = np.tanh(np.concatenate([f * h, x]) @ w_n + p["b"][d_hidden:])
    h = (1 - f) * h + f * candidate
    return {"h": h}, h


def lstm_peephole(p, carry, x):
    i, f, g, o = np.split(x @ p["w_x"] + p["b"] + carry["h"] @ p["w_h"], 4)
    i = sigmoid(i + np.diag(p["p_i"]) @ carry["c"])
    f = sigmoid(f + np.diag(p["p_f"]) @ carry["c"])
    c = f * carry["c"] + i * np.tanh(g)
    o = sigmoid(o + np.diag(p["p_o"]) @ c)
    h = o * np.tanh(c)
    return {"h": h, "c": c}, h


def layer_norm(x):
    return (x - np.mean(x)) / np.sqrt(np.var(x) + 1e-5)


def lstm_layernorm(p, carry, x):
    zx = layer_norm(x @ p["w_x"]) * p["g_x"]
    zh = layer_norm(carry["h"] @ p["w_h"]) * p["g_h"]
    i, f, g, o = np.split(zx + zh + p["b"], 4)
    c = sigmoid(f) * carry["c"] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(layer_norm(c) * p["g_c"] + p["b_c"])
    return {"h": h, "c": c}, h


def lstm_coupled(p, carry, x):
    f, g, o = np.split(x @ p["w_x"] + p["b"] + carry["h"] @ p["w_h"], 3)
    i = 1 - sigmoid(f)
    c = sigmoid(f) * carry["c"] + i * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return {"h": h, "c": c}, h


def indrnn(p, carry, x):
    h = np.maximum(0, x @ p["w_x"] + p["b"] + p["g_h"] * carry["h"])
    return {"h": h}, h


def min_gru(p, carry, x):
    z, candidate = np.split(x @ p["w_x"] + p["b"], 2)
    h = (1 - sigmoid(z)) * carry["h"] + sigmoid(z) * candidate
    return {"h": h}, h


def min_lstm(p, carry, x):
    f, i, candidate = np.split(x @ p["w_x"] + p["b"], 3)
    f, i = sigmoid(f), sigmoid(i)
    h = f / (f + i) * carry["h"] + i / (f + i) * candidate
    return {"h": h}, h


def sru(p, carry, x):
    f, r, candidate, highway = np.split(x @ p["w_x"] + p["b"], 4)
    f, r = sigmoid(f), sigmoid(r)
    c = f * carry["h"] + (1 - f) * candidate
    return {"h": c}, r * c + (1 - r) * highway


def rglru(p, carry, x):
    r, i, x = np.split(x @ p["w_x"] + p["b"], 3)
    a = sigmoid(-p["g_a"]) ** (8 * sigmoid(r))  # the paper's a = σ(Λ), with Λ = -g_a
    h = a * carry["h"] + np.sqrt(1 - a**2) * (sigmoid(i) * x)
    return {"h": h}, h


def lru(p, carry, x):
    b_re, b_im, skip = np.split(p["w_x"], 3, axis=1)
    c_re, minus_c_im = np.split(p["w_o"], 2)
    nu, theta, gamma = np.exp(p["b_nu"]), np.exp(p["b_theta"]), np.exp(p["b_gamma"])
    state = np.exp(-nu + 1j * theta) * (carry["h"] + 1j * carry["h_imag"]) + gamma * (x @ (b_re + 1j * b_im))
    return {"h": state.real, "h_imag": state.imag}, np.real(state @ (c_re - 1j * minus_c_im)) + x @ skip


EQUATIONS = {
    "elman": elman,
    "lstm": lstm,
    "gru": gru,
    "gru_cho": gru_cho,
    "mgu": mgu,
    "lstm_peephole": lstm_peephole,
    "lstm_layernorm": lstm_layernorm,
    "lstm_coupled": lstm_coupled,
    "indrnn": indrnn,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "sru": sru,
    "rglru": rglru,
    "lru": lru,
}


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


def covering(factors, strength, rows=()):
    """Rows, begun by `rows`, in which every `strength` factors take all combinations of their values."""
    rows, places = list(rows), list(itertools.combinations(range(len(factors)), strength))
    parts = lambda row: {(at, tuple(row[i] for i in at)) for at in places}  # noqa: E731
    candidates = list(itertools.product(*factors))
    missing = set().union(*map(parts, candidates)).difference(*map(parts, rows))
    while missing:
        rows.append(max(candidates, key=lambda row: len(parts(row) & missing)))
        missing -= parts(rows[-1])
    return rows
