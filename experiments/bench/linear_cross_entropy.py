"""``losses.linear_cross_entropy`` beside ``losses.cross_entropy`` of all logits, ``hidden @ table.T``.

    python -m experiments.bench.linear_cross_entropy [--shapes 8,128,256,32768 …] [--dtype float32] [--rounds 15]

Shapes are B,T,D,V. Forward is the mean loss; backward is the loss and its gradients by hidden and table. Printed are
medians in milliseconds of rounds in random order, the ratio of the medians, the median of the rounds' own ratios, and
the temporary memory that each compiled program asks for.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import jax

from seqjax import losses
from seqjax.memory import keep_freed_memory

SHAPES = ((8, 128, 256, 32768), (4, 64, 512, 32768), (32, 35, 200, 10000), (12, 64, 128, 65))


def linear(hidden, table, targets):
    total, weight = losses.linear_cross_entropy(hidden, table, targets)
    return total / weight


def materialised(hidden, table, targets):
    total, weight = losses.cross_entropy(hidden @ table.T, targets)
    return total / weight


def inputs(shape: tuple[int, ...], dtype: str) -> tuple[jax.Array, ...]:
    b, t, d, v = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (b, t, d), dtype)
    return hidden, jax.random.normal(keys[1], (v, d), dtype) / d**0.5, jax.random.randint(keys[2], (b, t), 0, v)


def measure(programs: dict[str, Callable], arguments: tuple, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each program in each round, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    order = random.Random(0)
    for _ in range(rounds):
        for name, program in order.sample(sorted(programs.items()), len(programs)):
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    keep_freed_memory()  # as every experiment does; it serves the others as well
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {device}, {options.dtype}")
    print("| B,T,D,V | | linear, ms | materialised, ms | ratio | by round | linear, MB | materialised, MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for text in options.shapes:
        arguments = inputs(tuple(map(int, text.split(","))), options.dtype)
        for mode in ("forward", "backward"):
            programs = {}
            for loss in (linear, materialised):
                function = loss if mode == "forward" else jax.value_and_grad(loss, argnums=(0, 1))
                programs[loss.__name__] = jax.jit(function).lower(*arguments).compile()
            ours, rival = measure(programs, arguments, options.rounds).values()
            by_round = statistics.median(a / b for a, b in zip(ours, rival, strict=True))
            memory = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs.values()]
            time_ours, time_rival = statistics.median(ours), statistics.median(rival)
            print(
                f"| {text} | {mode} | {time_ours:.1f} | {time_rival:.1f} | {time_ours / time_rival:.2f} "
                f"| {by_round:.2f} | {memory[0]:.1f} | {memory[1]:.1f} | {memory[0] / memory[1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
