"""Weak scaling of a training step: each device gets as many rows as one had, or a part of a model that grows.

    python -m experiments.bench.scaling                          # 1, 2, 4 and 8 fake devices of a CPU
    python -m experiments.bench.scaling --devices 4 --meshes data=-1 model=-1

For each mesh a program of its own is started. Printed are what a device sends and receives in one step, by kind of
collective, as the compiled program says, and the median time of a step. FAKE DEVICES SHARE THE CORES OF ONE CPU: with
twice as many there is twice as much work for the same cores, so their times say nothing about speed, only that it runs.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import jax
import numpy as np
from flax import nnx

from seqjax import losses, nn, sharding, train
from seqjax.models.rnn_lm import RNNLM
from seqjax.models.rnn_lm import Config as RNNConfig
from seqjax.models.transformer_lm import TransformerConfig, TransformerLM

VOCABULARY, ROWS, LENGTH = 4096, 4, 64
MODELS = {
    "transformer": lambda key: TransformerLM(
        TransformerConfig(d_model=256, n_heads=8, n_layers=2, context=LENGTH, tied=False),
        VOCABULARY,
        rngs=nnx.Rngs(key),
    ),
    "lstm": lambda key: RNNLM(RNNConfig(d_embed=256, d_hidden=256), VOCABULARY, rngs=nnx.Rngs(key)),
}
_KIND = re.compile(r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}


def collectives(hlo: str) -> list[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    """Kind and results, (dtype, shape), of each collective in a compiled program; one in a loop counts once."""
    found = []
    for line in hlo.splitlines():
        if match := _KIND.search(line):
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            found.append((match[2], [(dtype, tuple(map(int, filter(None, s.split(","))))) for dtype, s in arrays]))
    return found


def total_bytes(hlo: str) -> Counter:
    """kind -> bytes of the results of all collectives of that kind on one device."""
    total = Counter()
    for kind, arrays in collectives(hlo):
        total[kind] += sum(math.prod(shape) * _BYTES[dtype] for dtype, shape in arrays)
    return total


def loss_fn(apply, params, extra, batch, key, hyper):
    _, logits = apply(params, batch[:, :-1])
    return losses.cross_entropy(logits, batch[:, 1:]), (extra, {})


def run(model: str, text: str, rounds: int) -> str:
    """A line of the table."""
    mesh, make = sharding.make_mesh(text), MODELS[model]
    (init, apply), hyper, optimizer = nn.purify(make), train.Hyper(), train.make_optimizer()

    def start(key):
        return train.init_state(init(key), (), key, optimizer(hyper))

    state = sharding.initialise(start, jax.random.key(0), mesh, nn.logical_axes(make))
    rows = ROWS * mesh.shape.get("data", 1)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (rows, LENGTH + 1), np.int32)
    batch = sharding.place(mesh)(tokens)
    with jax.set_mesh(mesh):
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        train_step = train.make_step(partial(loss_fn, apply), optimizer)
        step = jax.jit(train_step, donate_argnums=0, out_shardings=(where, None))
        compiled = step.lower(state, batch, hyper).compile()
        times = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            state, metrics = compiled(state, batch, hyper)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - began)
    sent = total_bytes(compiled.as_text())
    weights = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    moved = ", ".join(f"{kind} {n / 2**20:.2f}" for kind, n in sorted(sent.items())) or "none"
    axes = ",".join(f"{name}={size}" for name, size in mesh.shape.items())
    milliseconds = 1e3 * statistics.median(times[1:])
    return (
        f"{model:12} {axes:16} {rows:3} rows  {weights / 2**20:6.2f} MiB of weights a device  {milliseconds:7.1f} ms  "
        f"MiB moved: {moved}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--meshes", nargs="+", default=["data=-1", "model=-1", "data=2,model=-1"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="only with the devices there are, no further programs")
    options = parser.parse_args()
    if options.alone:
        for model in options.models:
            for text in options.meshes:
                print(run(model, text, options.rounds), flush=True)
        return
    print(f"jax {jax.__version__}, {os.cpu_count()} cores that all fake devices share: the times are no claim of speed")
    for n in options.devices:
        meshes = [text for text in options.meshes if n > 1 or text == "data=-1"]
        meshes = [text for text in meshes if "data=2" not in text or n > 2]
        words = ["--alone", "--rounds", str(options.rounds), "--models", *options.models, "--meshes", *meshes]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(n), "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-m", "experiments.bench.scaling", *words], env=environment, check=True)


if __name__ == "__main__":
    main()
