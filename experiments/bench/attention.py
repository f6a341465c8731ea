"""Causal attention: ours by blocks beside `jax.nn.dot_product_attention`.

    python -m experiments.bench.attention [--shapes 1,2048,8,64 …] [--window 256] [--dtype float32]
        [--contenders xla reference chunked cudnn] [--rounds 7] [--json FILE]

Every round runs each contender once, in random order, so that a noisy machine disturbs all alike; printed are medians
in milliseconds, ratios to jax.nn's XLA path, and the temporary memory of the compiled program in MB. Shapes are
B,T,N,D. Backward is forward plus the gradients of queries, keys and values; where all scores do not fit into memory
(over --limit GB), only the blocks run. "cudnn" needs a GPU and --dtype bfloat16. Imports jax and numpy; nothing else.
"""

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp

from experiments.bench.recurrence import geometric_mean, measure, versions
from seqjax.attention import dot_product_attention

SHAPES = ((12, 64, 4, 32), (8, 256, 6, 64), (4, 512, 8, 64), (1, 2048, 8, 64), (2, 4096, 4, 64), (1, 8192, 8, 64))
RIVAL = "xla"


def contenders(names, shape, window, limit, dtype):
    """name -> {mode: (compiled, its temporary MB)}; None where it would need more than ``limit`` GB."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, target = (jax.random.normal(key, shape).astype(dtype) for key in keys)

    def loss(attend, *inputs):
        return jnp.sum((attend(*inputs) * target).astype(jnp.float32))

    found = {"forward": {}, "backward": {}}
    for name in names:
        attend = partial(dot_product_attention, causal=True, window=window, implementation=name)
        for mode, function in (("forward", attend), ("backward", jax.grad(partial(loss, attend), (0, 1, 2)))):
            compiled = jax.jit(function).lower(q, k, v).compile()
            memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
            run = None if memory > limit * 1e3 else lambda compiled=compiled: jax.block_until_ready(compiled(q, k, v))
            found[mode][name] = run, memory
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--window", type=int, help="a sliding window of so many keys")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", default=[RIVAL, "reference", "chunked"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=8.0, help="GB of temporary memory")
    parser.add_argument("--json", help="write the measurements to this file")
    arguments = parser.parse_args()

    rows = []
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    for text in arguments.shapes:
        shape = tuple(map(int, text.split(",")))
        options = arguments.window, arguments.limit, arguments.dtype
        for mode, found in contenders(arguments.contenders, shape, *options).items():
            medians = measure({name: run for name, (run, _) in found.items() if run is not None}, arguments.rounds)
            memory = {name: megabytes for name, (_, megabytes) in found.items()}
            row = {"shape": shape, "window": arguments.window, "dtype": arguments.dtype, "mode": mode}
            rows.append(row | {"ms": medians, "MB": memory})
            columns = "  ".join(
                f"{name} {medians.get(name, float('nan')):8.2f} ms {memory[name]:8.1f} MB" for name in found
            )
            print(f"{text:12} {mode:8}  {columns}", flush=True)
    for mode in ("forward", "backward"):
        both = [row["ms"] for row in rows if row["mode"] == mode and RIVAL in row["ms"]]
        for name in arguments.contenders:
            ratios = [ms[name] / ms[RIVAL] for ms in both if name in ms]
            if name != RIVAL and ratios:
                print(
                    f"{mode}: {name}/{RIVAL} {geometric_mean(ratios):.2f}, at worst {max(ratios):.2f}, geometric mean"
                )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
