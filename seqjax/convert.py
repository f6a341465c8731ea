"""Weights of recurrent layers, to and from torch, Keras, Flax and haiku, none of which is imported.

A ``kind`` is the name of the cell that runs the converted layer, a key of ``seqjax.CELLS``:

    kind      torch  Keras                   Flax                         haiku
    elman     RNN    SimpleRNN               SimpleCell                   VanillaRNN
    lstm      LSTM   LSTM                    LSTMCell, OptimizedLSTMCell  LSTM
    gru       GRU    GRU, reset_after=True   GRUCell
    gru_cho          GRU, reset_after=False                               GRU

A converted layer computes the same function. Weights are moved bit for bit, with two exceptions: biases that act as
one are added, and haiku's forget gate adds 1 itself. Biases that a layer lacks are 0 here. Weights do not tell the
nonlinearity: a layer with relu, as VanillaRNN always is, runs with ``seqjax.cells.elman.make(jax.nn.relu)``.

Results share no memory with the arguments; without ``jax_enable_x64`` JAX makes float32 of float64. ValueError is for
weights that are missing, unknown or misshapen, kinds that the library lacks, and biases that it lacks and are not 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.cells import elman, gru, gru_cho, lstm

Params = elman.Params | lstm.Params | gru.Params | gru_cho.Params
Layer = Params | tuple[Params, ...]  # one direction, or forward and backward
_PARAMS = {"elman": elman.Params, "lstm": lstm.Params, "gru": gru.Params, "gru_cho": gru_cho.Params}
_WIDE = {"elman": "H", "lstm": "4H", "gru": "3H", "gru_cho": "3H"}  # the width of all gates
_TORCH = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_KERAS_ORDER = {"elman": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "gru_cho": (1, 0, 2)}  # i f g o; z r n
_FLAX = {  # the dense layers on x and on h, one for each gate or one for all, and those of them with a bias
    "elman": {"linen": ("i", "h", "i"), "nnx": ("dense_i", "dense_h", "dense_i")},
    "lstm": {
        "linen": ("ii if ig io", "hi hf hg ho", "hi hf hg ho"),
        "nnx": ("ii if_ ig io", "hi hf hg ho", "hi hf hg ho"),
        "nnx_optimized": ("dense_i", "dense_h", "dense_h"),
    },
    "gru": {"linen": ("ir iz in", "hr hz hn", "ir iz in hn"), "nnx": ("dense_i", "dense_h", "dense_i")},
}
_HAIKU = {  # the default name of the module, and its arrays; X = D + H
    "elman": ("vanilla_rnn", {"linear/w": "D H", "linear_1/w": "H H", "linear/b": "H", "linear_1/b": "H"}),
    "lstm": ("lstm", {"linear/w": "X 4H", "linear/b": "4H"}),
    "gru_cho": ("gru", {"w_i": "D 3H", "w_h": "H 3H", "b": "3H"}),
}
_KINDS = {"torch": ("elman", "lstm", "gru"), "Keras": tuple(_PARAMS), "Flax": tuple(_FLAX), "haiku": tuple(_HAIKU)}


def from_torch(kind: str, state_dict: Mapping[str, Any]) -> list[Layer]:
    """The layers of a torch module, lowest first; a bidirectional one is a pair (forward, backward).

        w_x = weight_ihᵀ [D, GH],  w_h = weight_hhᵀ [H, GH],  b = bias_ih + bias_hh, but b and b_h in a gru

    Run one with ``seqjax.unroll``, several with ``seqjax.stack``, a pair with ``seqjax.bidirectional``. Values are
    arrays or tensors (bfloat16 after ``.float()``). The names of torch's single cells, without ``_l0``, are read too.

    >>> jax.tree.map(np.shape, from_torch("elman", {"weight_ih_l0": np.ones((5, 3)), "weight_hh_l0": np.ones((5, 5))}))
    [Params(w_x=(3, 5), w_h=(5, 5), b=(5,))]
    """
    _check_kind("kind", kind, "torch")
    given = {f"{name}_l0" if name in _TORCH else name: value for name, value in state_dict.items()}
    ways = ("", "_reverse") if any(name.endswith("_reverse") for name in given) else ("",)
    depth = sum(name.startswith("weight_ih") for name in given) // len(ways) or 1
    parts = _TORCH if any(name.startswith("bias") for name in given) else _TORCH[:2]
    suffixes = [f"_l{number}{way}" for number in range(depth) for way in ways]
    wide, shapes, directions = _WIDE[kind], {}, []
    for suffix in suffixes:
        below = "D" if suffix.startswith("_l0") else f"{len(ways)}H"
        shapes |= zip((part + suffix for part in parts), (f"{wide} {below}", f"{wide} H", wide, wide), strict=False)
    arrays = _checked("state_dict", given, shapes)
    for suffix in suffixes:
        w_ih, w_hh, *biases = (arrays[part + suffix] for part in parts)
        directions.append(_params(kind, w_ih.T, w_hh.T, *biases))
    return directions if len(ways) == 1 else list(zip(directions[::2], directions[1::2], strict=True))


def to_torch(layers: Sequence[Layer], *, bias: bool = True) -> dict[str, np.ndarray]:
    """The state dict of these layers; ``bias`` is the module's, and False needs biases of 0.

    ``module.load_state_dict({name: torch.from_numpy(value) for name, value in to_torch(layers).items()})`` loads it.
    """
    state_dict = {}
    for depth, layer in enumerate(layers):
        for number, params in enumerate([layer] if isinstance(layer, Params) else layer):
            _, w_x, w_h, *biases = _parts("layers", params, "torch", bias)
            names = (f"{part}_l{depth}{'_reverse' * number}" for part in _TORCH)
            state_dict |= zip(names, (w_x.T.copy(), w_h.T.copy(), *biases), strict=False)
    return state_dict


def from_keras(kind: str, weights: Sequence) -> Layer:
    """The layer with these ``get_weights()``; of a ``Bidirectional`` the pair (forward, backward).

    w_x is the kernel, w_h the recurrent kernel, b the bias; a gru has the bias [b; b_h]. Gates z r n become r z n.
    """
    _check_kind("kind", kind, "Keras")
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(f"weights has {len(weights)} arrays; one layer has 2 or 3, a Bidirectional twice as many.")
    wide, directions = _WIDE[kind], []
    shapes = {"kernel": f"D {wide}", "recurrent_kernel": f"H {wide}", "bias": "2 3H" if kind == "gru" else wide}
    if len(weights) % 3:
        del shapes["bias"]
    for start in range(0, len(weights), len(shapes)):
        arrays = _checked("weights", dict(zip(shapes, weights[start:], strict=False)), shapes)
        w_x, w_h, *biases = (_permuted(array, _KERAS_ORDER[kind]) for array in arrays.values())
        directions.append(_params(kind, w_x, w_h, *np.reshape(biases, (-1, len(w_x[0])))))
    return directions[0] if len(directions) == 1 else tuple(directions)


def to_keras(layer: Layer, *, bias: bool = True) -> list[np.ndarray]:
    """The argument of ``set_weights``; ``bias`` is the layer's ``use_bias``, and False needs biases of 0."""
    weights = []
    for params in [layer] if isinstance(layer, Params) else layer:
        kind, w_x, w_h, *biases = _parts("layer", params, "Keras", bias)
        biases = [np.stack(biases)] if kind == "gru" and bias else biases[:1]
        weights += [_permuted(array, _KERAS_ORDER[kind]) for array in (w_x, w_h, *biases)]
    return weights


def from_flax(kind: str, params: Mapping[str, Any]) -> Params:
    """The cell with linen's ``variables["params"]`` or with ``nnx.state(cell)``; of an ``RNN``, their entry "cell"."""
    _check_kind("kind", kind, "Flax")
    form = max(_FLAX[kind].values(), key=lambda form: len(set(params) & set(" ".join(form).split())))
    *sides, biased = (names.split() for names in form)
    wide = _WIDE[kind] if len(sides[0]) == 1 else "H"
    shapes = {f"{name}/kernel": f"{rows} {wide}" for side, rows in zip(sides, "DH", strict=True) for name in side}
    arrays = _checked("params", dict(_flat(params)), shapes | {f"{name}/bias": wide for name in biased})
    none = np.zeros_like(arrays[f"{sides[0][0]}/kernel"][0])
    w_x, w_h = (np.concatenate([arrays[f"{name}/kernel"] for name in side], axis=1) for side in sides)
    b, b_h = (np.concatenate([arrays[f"{name}/bias"] if name in biased else none for name in side]) for side in sides)
    return _params(kind, w_x, w_h, b, b_h)


def to_flax(params: Params, *, form: str = "linen") -> dict[str, dict]:
    """The params of the Flax cell; ``form`` is linen, nnx or, for ``nnx.OptimizedLSTMCell``, nnx_optimized.

    A gru's b_h is added to b, but for the third that the reset gate multiplies; ``nnx.GRUCell`` lacks that third, so
    there it must be 0. ``nnx.update(cell, to_flax(params, form="nnx"))`` gives a cell these weights.
    """
    kind, w_x, w_h, b, b_h = _parts("params", params, "Flax")
    if form not in _FLAX[kind]:
        raise ValueError(f"form is {form!r}; for the kind {kind} pass one of {', '.join(_FLAX[kind])}.")
    if kind == "lstm":
        b, b_h = b_h, b  # Flax has it beside h
    if kind == "gru":
        r_z, n = np.split(np.arange(len(b)), [2 * len(w_h)])
        b[r_z], b_h[r_z] = b[r_z] + b_h[r_z], 0
        if form == "nnx" and b_h.any():
            raise ValueError(f"params.b_h ends in b_hn = {b_h[n]}, which nnx.GRUCell lacks; pass form='linen'.")
    *sides, biased = (names.split() for names in _FLAX[kind][form])
    tree = {}
    for names, w, biases in zip(sides, (w_x, w_h), (b, b_h), strict=True):
        parts = (np.split(array, len(names), axis=-1) for array in (w, biases))
        for name, kernel, bias in zip(names, *parts, strict=True):
            tree[name] = {"kernel": kernel, "bias": bias} if name in biased else {"kernel": kernel}
    return jax.tree.map(jnp.array, tree)


def from_haiku(kind: str, params: Mapping[str, Any], *, name: str | None = None) -> Params:
    """The module ``name`` among these params, by default ``vanilla_rnn``, ``lstm`` or ``gru``.

    LSTM has one matrix [w_x; w_h] [D+H, 4H], gates i g f o, and adds 1 to f. GRU has gates z r n and
    h = (1 - z) h + z n, with z in the opposite role: its columns are negated, for 1 - σ(z) = σ(-z).
    """
    _check_kind("kind", kind, "haiku")
    name, shapes = name or _HAIKU[kind][0], _HAIKU[kind][1]
    given = {path.removeprefix(f"{name}/"): leaf for path, leaf in _flat(params) if path.startswith(f"{name}/")}
    shapes = {path: shape for path, shape in shapes.items() if path in given or path != "linear_1/b"}  # double_bias
    arrays = _checked(f"params ({name!r} of the modules {list(params)})", given, shapes).values()
    if kind == "lstm":
        w, b = (_permuted(array, (0, 2, 1, 3)) for array in arrays)
        b[len(b) // 4 : len(b) // 2] += 1
        arrays = (*np.split(w, [-(len(b) // 4)]), b)
        if len(w) <= len(b) // 4:
            raise ValueError(f"params: linear/w has shape {w.shape}; more than H = {len(b) // 4} rows are needed.")
    if kind == "gru_cho":
        arrays = (_permuted(array, (1, 0, 2), negate=0) for array in arrays)
    return _params(kind, *arrays)


def to_haiku(params: Params, *, name: str | None = None) -> dict[str, dict]:
    """The params of the haiku module ``name``; VanillaRNN's second bias is 0."""
    kind, w_x, w_h, b, b_h = _parts("params", params, "haiku")
    name = name or _HAIKU[kind][0]
    if kind == "elman":
        tree = {f"{name}/linear": {"w": w_x, "b": b}, f"{name}/linear_1": {"w": w_h, "b": b_h}}
    elif kind == "lstm":
        w, b = (_permuted(array, (0, 2, 1, 3)) for array in (np.concatenate([w_x, w_h]), b))
        b[len(b) // 2 : 3 * len(b) // 4] -= 1
        tree = {f"{name}/linear": {"w": w, "b": b}}
    else:
        w_i, w_h, b = (_permuted(array, (1, 0, 2), negate=1) for array in (w_x, w_h, b))
        tree = {name: {"w_i": w_i, "w_h": w_h, "b": b}}
    return jax.tree.map(jnp.array, tree)


def _permuted(array: np.ndarray, order: tuple[int, ...], negate: int | None = None) -> np.ndarray:
    """The gates along the last axis in this order, gate ``negate`` with the other sign. Our orders undo themselves."""
    gates = np.split(array, len(order), axis=-1)
    return np.concatenate([-gates[gate] if gate == negate else gates[gate] for gate in order], axis=-1)


def _params(kind: str, w_x: np.ndarray, w_h: np.ndarray, *biases: np.ndarray) -> Params:
    """Params of matrices [D, GH] and [H, GH] and none, one or two biases."""
    b, b_h, *_ = *biases, np.zeros_like(w_h[0]), np.zeros_like(w_h[0])
    fields = {"w_x": w_x, "w_h": w_h} | ({"b": b, "b_h": b_h} if kind == "gru" else {"b": b + b_h})
    if kind == "gru_cho":
        fields["w_h"], fields["w_g"] = np.split(w_h, [2 * len(w_h)], axis=1)
    return _PARAMS[kind](**{name: jnp.array(value) for name, value in fields.items()})


def _parts(argument: str, params: Params, library: str, bias: bool = True) -> tuple[str, *tuple[np.ndarray, ...]]:
    """What ``_params`` makes Params of, as copies: kind, w_x [D, GH], w_h [H, GH], and if ``bias`` b and b_h [GH]."""
    kind = next((kind for kind, fields in _PARAMS.items() if isinstance(params, fields)), type(params).__name__)
    _check_kind(argument, kind, library)
    given, wide = {"b_h": np.zeros_like(params.b)} | params._asdict(), _WIDE[kind]
    if kind == "gru_cho":
        given["w_h"] = np.concatenate([given["w_h"], given.pop("w_g")], axis=1)
    arrays = _checked(argument, given, {"w_x": f"D {wide}", "w_h": f"H {wide}", "b": wide, "b_h": wide})
    if not bias and (arrays["b"].any() or arrays["b_h"].any()):
        raise ValueError(f"bias is False, but {argument} has biases that are not 0; pass bias=True.")
    return kind, *(np.array(array) for array in list(arrays.values())[: 4 if bias else 2])


def _check_kind(argument: str, kind: str, library: str) -> None:
    if kind not in _KINDS[library]:
        raise ValueError(f"{argument}: {kind!r} is no kind that {library} has; these are {', '.join(_KINDS[library])}.")


def _checked(argument: str, given: Mapping[str, Any], shapes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The given arrays in the order of ``shapes``. A shape reads "D 4H"; a letter is the same size everywhere."""
    missing, unknown = [name for name in shapes if name not in given], [name for name in given if name not in shapes]
    if missing or unknown:
        raise ValueError(f"{argument}: missing {missing}, unknown {unknown}; pass exactly {list(shapes)}.")
    arrays, sizes = {}, {"2": 2}
    for name, shape in shapes.items():
        value, dims = given[name], shape.split()
        arrays[name] = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        for dim, size in zip(dims, arrays[name].shape, strict=False):
            sizes.setdefault(dim[-1], size // int(dim[:-1] or 1))
        if arrays[name].shape != tuple(int(dim[:-1] or 1) * sizes.get(dim[-1], 0) for dim in dims):
            raise ValueError(f"{argument}: {name} has shape {arrays[name].shape}, not ({shape}) with {sizes}.")
    return arrays


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        yield from _flat(value, f"{path}{name}/") if isinstance(value, Mapping) else [(f"{path}{name}", value)]
