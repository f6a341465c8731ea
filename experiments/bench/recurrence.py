"""Recurrent layers: seqjax beside flax and, where installed, torch.

    python -m experiments.bench.recurrence [--cells lstm gru] [--shapes 32,128,256,256 …] [--dtype float32]
        [--contenders None scan flax_nnx flax_linen torch …] [--rounds 15] [--json FILE]

Every round runs each contender once, in random order, so that a noisy machine disturbs all alike; printed are medians
in milliseconds and ratios of medians. Shapes are B,T,D,H. Forward is the layer alone; backward is forward plus the
gradients of all weights and of the inputs. "None" is ``implementation=None``; the other implementations of
``seqjax.unroll`` go by their names. With --dtype bfloat16 the inputs have it, and torch's weights; ours and flax's
weights stay float32.
Imports jax, flax and, if there, torch; nothing else.
"""

import argparse
import importlib.util
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import seqjax
from seqjax.memory import keep_freed_memory

SHAPES = (
    (32, 128, 256, 256),
    (64, 35, 200, 200),
    (20, 35, 650, 650),
    (128, 256, 128, 128),
    (1, 512, 256, 256),
    (8, 1024, 64, 64),
    (64, 128, 512, 512),
)
NNX_CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "elman": nnx.SimpleCell}
LINEN_CELLS = {"lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell, "elman": linen.SimpleCell}
RIVALS = ("flax_nnx", "flax_linen", "torch")


def inputs(shape: tuple[int, ...], dtype: str) -> jax.Array:
    b, t, d, _ = shape
    return jax.random.normal(jax.random.key(2), (t, b, d), dtype)


def jax_pair(forward: Callable, weights, xs) -> dict[str, Callable[[], None]]:
    """Compiled forward and forward+backward of ``forward(weights, xs) -> ys``, each blocking until done."""
    ys = jax.eval_shape(forward, weights, xs)
    target = jax.random.normal(jax.random.key(1), ys.shape, ys.dtype)
    gradient = jax.jit(jax.grad(lambda w, xs: jnp.sum(forward(w, xs) * target), argnums=(0, 1)))
    forward = jax.jit(forward)
    return {
        "forward": lambda: jax.block_until_ready(forward(weights, xs)),
        "backward": lambda: jax.block_until_ready(gradient(weights, xs)),
    }


def ours(cell: str, shape: tuple[int, ...], implementation: str | None, dtype: str) -> dict[str, Callable[[], None]]:
    """seqjax, time-major."""
    params = seqjax.CELLS[cell].init(jax.random.key(0), *shape[2:])
    run = partial(seqjax.unroll, seqjax.CELLS[cell], implementation=implementation)
    return jax_pair(lambda params, xs: run(params, xs)[1], params, inputs(shape, dtype))


def flax_nnx(cell: str, shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], None]]:
    """flax.nnx.RNN, time-major, split once and merged inside jit: its cheapest use."""
    b, _, d, h = shape
    layer = NNX_CELLS[cell](d, h, rngs=nnx.Rngs(0), dtype=dtype)
    rnn = nnx.RNN(layer, time_major=True, rngs=nnx.Rngs(0))
    # Given, because a carry of zeros that nnx makes itself draws keys, which fails under grad.
    carry = jax.tree.map(lambda a: a.astype(dtype), rnn.cell.initialize_carry((b, d), rngs=nnx.Rngs(0)))
    graphdef, weights, other = nnx.split(rnn, nnx.Param, ...)
    return jax_pair(lambda w, xs: nnx.merge(graphdef, w, other)(xs, initial_carry=carry), weights, inputs(shape, dtype))


def flax_linen(cell: str, shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], None]]:
    """flax.linen.RNN, time-major."""
    rnn = linen.RNN(LINEN_CELLS[cell](shape[3], dtype=dtype), time_major=True)
    xs = inputs(shape, dtype)
    return jax_pair(rnn.apply, rnn.init(jax.random.key(0), xs), xs)


def torch_layer(cell: str, shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], None]]:
    """torch.nn's layer: oneDNN on the CPU, cuDNN on a GPU."""
    import torch

    b, t, d, h = shape
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}[cell]
    to = {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": getattr(torch, dtype)}
    layer = kind(d, h).to(**to)
    layer.flatten_parameters()
    xs = torch.randn(t, b, d, **to, requires_grad=True)
    target = torch.randn(t, b, h, **to)

    def done():
        if to["device"] == "cuda":
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


def compile_all(functions: list[Callable[[], None]]) -> None:
    """Call each once, side by side: compiling takes longer than measuring."""
    with ThreadPoolExecutor() as pool:
        for call in [pool.submit(function) for function in functions]:
            call.result()


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
            if name == "torch" and jax.default_backend() == "cpu":
                time.sleep(0.25)  # its threads spin on for a while, to the cost of whoever comes next
    return {name: statistics.median(values) for name, values in times.items()}


def contender(name: str, cell: str, shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], None]]:
    """The forward and backward of one contender."""
    rivals = {"flax_nnx": flax_nnx, "flax_linen": flax_linen, "torch": torch_layer}
    if name in rivals:
        return rivals[name](cell, shape, dtype)
    return ours(cell, shape, None if name == "None" else name, dtype)


def versions() -> dict[str, str]:
    """What was compared, and where."""
    import flax as flax_package

    found = {"jax": jax.__version__, "flax": flax_package.__version__, "numpy": np.__version__}
    if importlib.util.find_spec("torch"):
        import torch

        found["torch"] = torch.__version__
    device = jax.devices()[0]
    return found | {"python": platform.python_version(), "device": f"{jax.device_count()} x {device.device_kind}"}


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def main() -> None:
    keep_freed_memory()  # as every experiment does; it serves the others as well
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=list(NNX_CELLS))
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--contenders", nargs="+", default=["None", "scan", *RIVALS])
    parser.add_argument("--modes", nargs="+", default=["forward", "backward"], choices=["forward", "backward"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the measurements to this file")
    arguments = parser.parse_args()
    names = [name for name in arguments.contenders if name != "torch" or importlib.util.find_spec("torch")]

    rows = []
    print("  ".join(f"{name} {version}" for name, version in versions().items()), arguments.dtype)
    layers = {(cell, tuple(map(int, text.split(",")))): {} for cell in arguments.cells for text in arguments.shapes}
    for (cell, shape), contenders in layers.items():
        contenders |= {name: contender(name, cell, shape, arguments.dtype) for name in names}
    compile_all(
        [
            pair[mode]
            for contenders in layers.values()
            for name, pair in contenders.items()
            for mode in arguments.modes
            if name != "torch"
        ]
    )
    for (cell, shape), contenders in layers.items():
        for mode in arguments.modes:
            medians = measure({name: pair[mode] for name, pair in contenders.items()}, arguments.rounds)
            rows.append({"cell": cell, "shape": shape, "mode": mode, **medians})
            columns = "  ".join(f"{name} {value:8.2f}" for name, value in medians.items())
            print(f"{cell:5} {','.join(map(str, shape)):16} {mode:8}  {columns}", flush=True)
    for cell in arguments.cells:
        for mode in arguments.modes:
            chosen = [row for row in rows if row["cell"] == cell and row["mode"] == mode]
            for rival in [name for name in names if name != "None"]:
                ratios = [row["None"] / row[rival] for row in chosen]
                print(
                    f"{cell} {mode}: None/{rival} geometric mean {geometric_mean(ratios):.2f}, worst {max(ratios):.2f}"
                )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"versions": versions(), "dtype": arguments.dtype, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
