"""The linear recurrence h = a h + u: ours beside `lax.associative_scan` and `lax.scan`, both with autodiff.

    python -m experiments.bench.linear_recurrence [--shapes 8,4096,256 …] [--pair] [--rounds 11] [--json FILE]

Every round runs each contender once, in random order, so that a noisy machine disturbs all alike; printed are medians
in milliseconds and ratios to associative_scan. Shapes are B,T,H. Backward is forward plus the gradients of a, u and the
first state. "loop" and "tree" are ours with either way, "auto" with the one chosen; --pair makes the numbers complex.
Arrays of 32 MB and more are new pages of memory for each result; MALLOC_MMAP_THRESHOLD_=4294967296
MALLOC_TRIM_THRESHOLD_=17179869184 makes glibc keep them, and shows the arithmetic. Imports jax and flax; nothing else.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from experiments.bench.recurrence import geometric_mean, measure, versions
from seqjax.kernels.linear import associative as tree
from seqjax.kernels.linear import linear_recurrence, loop
from seqjax.memory import keep_freed_memory

SHAPES = ((8, 4096, 256), (1, 16384, 64), (32, 512, 256), (8, 1024, 64), (64, 128, 512), (1, 4096, 1024))
RIVAL = "associative"


def complex_numbers(*pairs):
    """Arrays that jax's own scans take: real ones, or complex ones made of the pairs."""
    return [lax.complex(*x) if isinstance(x, tuple) else x for x in pairs]


def associative(a, u, h0):
    """jax's parallel scan over the maps h -> a h + u."""
    a, u, h0 = complex_numbers(a, u, h0)
    return lax.associative_scan(lambda f, g: (f[0] * g[0], g[0] * f[1] + g[1]), (a, u.at[0].add(a[0] * h0)))[1]


def sequential(a, u, h0):
    """A loop over steps."""
    a, u, h0 = complex_numbers(a, u, h0)

    def body(h, au):
        h = au[0] * h + au[1]
        return h, h

    return lax.scan(body, h0, (a, u))[1]


def contenders(shape: tuple[int, ...], pair: bool) -> dict[str, dict[str, Callable[[], None]]]:
    """name -> its forward and backward."""
    b, t, h = shape

    def draw(seed, *shape):
        keys = jax.random.split(jax.random.key(seed), 2)
        made = tuple(jax.random.uniform(key, shape, minval=-0.7, maxval=0.7) for key in keys)
        return made if pair else made[0]

    inputs = draw(0, t, b, h), draw(1, t, b, h), draw(2, b, h)
    target = jax.random.normal(jax.random.key(3), (t, b, h))
    found = {RIVAL: associative, "scan": sequential, "auto": linear_recurrence}
    found |= {"loop": partial(linear_recurrence, run=loop), "tree": partial(linear_recurrence, run=tree)}

    def loss(run, *inputs):
        hs = run(*inputs)
        re, im = hs if isinstance(hs, tuple) else (jnp.real(hs), jnp.imag(hs) if pair else None)
        return jnp.sum(re * target) + (0 if im is None else jnp.sum(im * target))

    def both(run):
        forward, backward = jax.jit(run), jax.jit(jax.grad(partial(loss, run), argnums=(0, 1, 2)))
        return {
            "forward": lambda: jax.block_until_ready(forward(*inputs)),
            "backward": lambda: jax.block_until_ready(backward(*inputs)),
        }

    return {name: both(run) for name, run in found.items()}


def main() -> None:
    keep_freed_memory()  # as every experiment does; it serves the others as well
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--pair", action="store_true", help="complex numbers")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", help="write the measurements to this file")
    arguments = parser.parse_args()

    rows = []
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    for text in arguments.shapes:
        shape = tuple(map(int, text.split(",")))
        pairs = contenders(shape, arguments.pair)
        for mode in ("forward", "backward"):
            medians = measure({name: pair[mode] for name, pair in pairs.items()}, arguments.rounds)
            rows.append({"shape": shape, "pair": arguments.pair, "mode": mode, **medians})
            columns = "  ".join(f"{name} {value:8.2f}" for name, value in medians.items())
            print(f"{text:12} {mode:8}  {columns}   x{medians[RIVAL] / medians['auto']:.1f}", flush=True)
    for mode in ("forward", "backward"):
        ratios = [row[RIVAL] / row["auto"] for row in rows if row["mode"] == mode]
        speed = f"{geometric_mean(ratios):.1f} times (at worst {min(ratios):.1f})"
        print(f"{mode}: auto is {speed} as fast as associative_scan, geometric mean")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
