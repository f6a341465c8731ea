"""Make convert.npz: layers of torch, Keras and haiku, with random weights and biases, and what they compute.

In float64, but Keras in float32, since with JAX it cannot do better.

Needs these libraries, in an environment of their own:

    pip install torch==2.13.0 keras==3.15.1 dm-haiku==0.0.17 "jax==0.10.2"
    KERAS_BACKEND=jax python tests/golden/make_convert.py

``tests/test_convert.py`` also calls ``RUN`` itself, where a library is installed.
"""

from pathlib import Path

import numpy as np

T, B, D, H = 5, 2, 3, 4
CASES = {  # of each library: the kind of cell and the options of the layer
    "torch": [
        ("elman", {}),
        ("elman", {"nonlinearity": "relu", "bias": False}),
        ("elman", {"bidirectional": True}),
        ("lstm", {}),
        ("lstm", {"num_layers": 2, "bias": False}),
        ("lstm", {"num_layers": 2, "bidirectional": True}),
        ("gru", {"num_layers": 3}),
        ("gru", {"bidirectional": True, "bias": False}),
        ("gru", {"num_layers": 2, "bidirectional": True}),
    ],
    "keras": [
        ("elman", {}),
        ("elman", {"activation": "relu", "use_bias": False}),
        ("elman", {"bidirectional": True}),
        ("lstm", {}),
        ("lstm", {"use_bias": False}),
        ("lstm", {"bidirectional": True}),
        ("gru", {}),
        ("gru", {"use_bias": False}),
        ("gru", {"bidirectional": True}),
        ("gru_cho", {}),
        ("gru_cho", {"bidirectional": True, "use_bias": False}),
    ],
    "haiku": [("elman", {}), ("elman", {"double_bias": False}), ("lstm", {}), ("gru_cho", {})],
}


def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(T, B, D))


def run_torch(kind, options, xs, weights=None, rng=None):
    """The weights, random ones unless they are given, and the outputs [T, B, H] for xs [T, B, D]."""
    import torch

    layer = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](D, H, **options).double()
    if weights is None:
        weights = {name: rng.normal(size=value.shape) for name, value in layer.state_dict().items()}
    layer.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return weights, layer(torch.from_numpy(xs))[0].detach().numpy()


def run_keras(kind, options, xs, weights=None, rng=None):
    """The same for Keras; the weights are a list."""
    import jax
    import keras

    options = {"return_sequences": True, **options}
    bidirectional = options.pop("bidirectional", False)
    if kind == "elman":
        layer = keras.layers.SimpleRNN(H, **options)
    elif kind == "lstm":
        layer = keras.layers.LSTM(H, **options)
    else:
        layer = keras.layers.GRU(H, reset_after=kind == "gru", **options)
    if bidirectional:
        layer = keras.layers.Bidirectional(layer)
    with jax.enable_x64(False):
        layer.build((B, T, D))
        if weights is None:
            weights = [rng.normal(size=value.shape).astype(value.dtype) for value in layer.get_weights()]
        layer.set_weights(weights)
        return weights, np.swapaxes(np.asarray(layer(np.swapaxes(xs, 0, 1).astype(np.float32))), 0, 1)


def run_haiku(kind, options, xs, weights=None, rng=None):
    """The same for haiku; the weights are its params."""
    import haiku
    import jax

    cell = {"elman": haiku.VanillaRNN, "lstm": haiku.LSTM, "gru_cho": haiku.GRU}[kind]

    def forward(xs):
        core = cell(H, **options)
        state = jax.tree.map(lambda array: array.astype(xs.dtype), core.initial_state(B))
        return haiku.static_unroll(core, xs, state)[0]

    transformed = haiku.without_apply_rng(haiku.transform(forward))
    with jax.enable_x64(True):
        if weights is None:
            weights = jax.tree.map(lambda a: rng.normal(size=a.shape), transformed.init(jax.random.key(0), xs))
        return weights, np.asarray(transformed.apply(weights, xs))


RUN = {"torch": run_torch, "keras": run_keras, "haiku": run_haiku}


def main() -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for library, cases in CASES.items():
        for number, (kind, options) in enumerate(cases):
            xs = inputs(rng)
            weights, ys = RUN[library](kind, options, xs, rng=rng)
            case = f"{library}.{number}"
            arrays |= {f"{case}.xs": xs, f"{case}.ys": ys}
            if library == "keras":
                weights = {str(index): value for index, value in enumerate(weights)}
            if library == "haiku":
                weights = {f"{module}.{name}": value for module in weights for name, value in weights[module].items()}
            arrays |= {f"{case}.weights.{name}": value for name, value in weights.items()}
    path = Path(__file__).with_name("convert.npz")
    np.savez_compressed(path, **arrays)
    print(f"{len(arrays)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
