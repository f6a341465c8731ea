"""Recurrent layers: seqjax beside flax and, where installed, torch.

    python -m experiments.bench.recurrence [--cells lstm gru] [--shapes 32,128,256,256 …] [--rounds 15] [--json FILE]

Every round runs each contender once, in random order, so that a noisy machine disturbs all alike; printed are medians
in milliseconds and ratios of medians. Shapes are B,T,D,H. Forward is the layer alone; backward is forward plus the
gradients of all weights and of the inputs. Imports jax, flax and, if there, torch; nothing else.
"""

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import seqjax

SHAPES = (
    (32, 128, 256, 256),
    (64, 35, 200, 200),
    (20, 35, 650, 650),
    (128, 256, 128, 128),
    (1, 512, 256, 256),
    (8, 1024, 64, 64),
    (64, 128, 512, 512),
)
FLAX_CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "elman": nnx.SimpleCell}


def jax_pair(forward: Callable, weights, xs) -> dict[str, Callable[[], None]]:
    """Compiled forward and forward+backward of ``forward(weights, xs) -> ys``, each blocking until done."""
    target = jax.random.normal(jax.random.key(1), jax.eval_shape(forward, weights, xs).shape)
    gradient = jax.jit(jax.grad(lambda w, xs: jnp.sum(forward(w, xs) * target), argnums=(0, 1)))
    forward = jax.jit(forward)
    return {
        "forward": lambda: jax.block_until_ready(forward(weights, xs)),
        "backward": lambda: jax.block_until_ready(gradient(weights, xs)),
    }


def ours(cell: str, shape: tuple[int, ...], implementation: str | None) -> dict[str, Callable[[], None]]:
    """seqjax, time-major."""
    b, t, d, h = shape
    params = seqjax.CELLS[cell].init(jax.random.key(0), d, h)
    xs = jax.random.normal(jax.random.key(2), (t, b, d))
    run = partial(seqjax.unroll, seqjax.CELLS[cell], implementation=implementation)
    return jax_pair(lambda params, xs: run(params, xs)[1], params, xs)


def flax(cell: str, shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    """flax.nnx.RNN, time-major, split once and merged inside jit: its cheapest use."""
    b, t, d, h = shape
    rnn = nnx.RNN(FLAX_CELLS[cell](d, h, rngs=nnx.Rngs(0)), time_major=True, rngs=nnx.Rngs(0))
    # Given, because a carry of zeros that nnx makes itself draws keys, which fails under grad.
    carry = rnn.cell.initialize_carry((b, d), rngs=nnx.Rngs(0))
    graphdef, weights, other = nnx.split(rnn, nnx.Param, ...)
    xs = jax.random.normal(jax.random.key(2), (t, b, d))
    return jax_pair(lambda w, xs: nnx.merge(graphdef, w, other)(xs, initial_carry=carry), weights, xs)


def torch_layer(cell: str, shape: tuple[int, ...]) -> dict[str, Callable[[], None]] | None:
    """torch.nn's layer (oneDNN on the CPU, cuDNN on a GPU); None without torch."""
    try:
        import torch
    except ImportError:
        return None
    b, t, d, h = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}[cell](d, h).to(device)
    xs = torch.randn(t, b, d, device=device, requires_grad=True)
    target = torch.randn(t, b, h, device=device)

    def done():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            layer(xs)
        done()

    def backward():
        layer.zero_grad(set_to_none=True)
        xs.grad = None
        (layer(xs)[0] * target).sum().backward()
        done()

    return {"forward": forward, "backward": backward}


def measure(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each function over rounds in random order, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    order = random.Random(0)
    for _ in range(rounds):
        for name, function in order.sample(sorted(functions.items()), len(functions)):
            began = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - began))
            if name == "torch":
                time.sleep(0.25)  # its threads spin on for a while, to the cost of whoever comes next
    return {name: statistics.median(values) for name, values in times.items()}


def contenders(cell: str, shape: tuple[int, ...]) -> dict[str, dict[str, Callable[[], None]]]:
    """name -> its forward and backward."""
    found = {"auto": ours(cell, shape, None), **{name: ours(cell, shape, name) for name in ("scan", "fused")}}
    found["flax"] = flax(cell, shape)
    layer = torch_layer(cell, shape)
    return found if layer is None else found | {"torch": layer}


def versions() -> dict[str, str]:
    """What was compared, and where."""
    import flax as flax_package

    found = {"jax": jax.__version__, "flax": flax_package.__version__, "numpy": np.__version__}
    try:
        import torch

        found["torch"] = torch.__version__
    except ImportError:
        pass
    device = jax.devices()[0]
    return found | {"python": platform.python_version(), "device": f"{jax.device_count()} x {device.device_kind}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=list(FLAX_CELLS))
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the measurements to this file")
    arguments = parser.parse_args()

    rows = []
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    for cell in arguments.cells:
        for text in arguments.shapes:
            shape = tuple(map(int, text.split(",")))
            pairs = contenders(cell, shape)
            for mode in ("forward", "backward"):
                medians = measure({name: pair[mode] for name, pair in pairs.items()}, arguments.rounds)
                rows.append({"cell": cell, "shape": shape, "mode": mode, **medians})
                columns = "  ".join(f"{name} {value:8.2f}" for name, value in medians.items())
                print(f"{cell:5} {text:16} {mode:8}  {columns}", flush=True)
    for cell in arguments.cells:
        for mode in ("forward", "backward"):
            chosen = [row for row in rows if row["cell"] == cell and row["mode"] == mode]
            for rival in ("flax", "torch"):
                ratios = [row["auto"] / row[rival] for row in chosen if rival in row]
                if ratios:
                    mean = math.exp(statistics.fmean(map(math.log, ratios)))
                    print(f"{cell} {mode}: auto/{rival} geometric mean {mean:.2f}, worst {max(ratios):.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
