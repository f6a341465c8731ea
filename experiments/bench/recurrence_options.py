"""What options of ``seqjax.unroll`` cost, forward plus gradients, each beside the plain call in the same rounds.

    python -m experiments.bench.recurrence_options [--cells lstm gru] [--shapes 32,128,256,256 …] [--rounds 15]

Printed are medians in milliseconds and ratios to "plain"; last, the memory that ``checkpoint_every`` keeps for the
backward pass, and 16 sets of weights under one ``vmap`` beside 16 calls.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

import seqjax
from experiments.bench.recurrence import SHAPES, compile_all, geometric_mean, measure, versions
from seqjax.memory import keep_freed_memory


def gradient_call(loss, *arguments):
    """A compiled call of the gradients of ``loss``, blocking until done."""
    gradient = jax.jit(jax.grad(loss, argnums=tuple(range(len(arguments)))))
    return lambda: jax.block_until_ready(gradient(*arguments))


def calls(cell, shape):
    """name -> forward plus gradients with that option."""
    b, t, d, h = shape
    keys = jax.random.split(jax.random.key(0), 6)
    params, other = cell.init(keys[0], d, h), cell.init(keys[1], d, h)
    xs, target = jax.random.normal(keys[2], (t, b, d)), jax.random.normal(keys[3], (t, b, h))
    both = jnp.concatenate([target, target], axis=-1)
    options = {
        "plain": {},
        "lengths": {"lengths": jax.random.randint(keys[4], (b,), t // 2, t + 1)},
        "resets": {"resets": jax.random.bernoulli(keys[5], 0.05, (t, b))},
        "checkpoint": {"checkpoint_every": round(t**0.5)},
    }

    def loss(params, xs, **options):
        return jnp.sum(seqjax.unroll(cell, params, xs, **options)[1] * target)

    def bidirectional(params, other, xs):
        return jnp.sum(seqjax.bidirectional(cell, params, other, xs)[1] * both)

    found = {name: gradient_call(partial(loss, **chosen), params, xs) for name, chosen in options.items()}
    return found | {"bidirectional": gradient_call(bidirectional, params, other, xs)}


def kept_bytes(cell, shape, every):
    """Bytes that the forward pass leaves for the backward pass, besides its own arguments."""
    b, t, d, h = shape
    params, xs = cell.init(jax.random.key(0), d, h), jnp.ones((t, b, d))
    _, pull = jax.vjp(lambda params, xs: seqjax.unroll(cell, params, xs, checkpoint_every=every)[1], params, xs)
    given = {id(leaf) for leaf in jax.tree.leaves((params, xs))}
    return sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if id(leaf) not in given)


def members(cell, rounds):
    """16 sets of weights at (8,64,32,32): milliseconds of one vmapped program and of 16 calls."""
    sets = jax.vmap(lambda key: cell.init(key, 32, 32))(jax.random.split(jax.random.key(0), 16))
    xs = jnp.ones((64, 8, 32))
    gradient = jax.grad(lambda params: jnp.sum(jnp.square(seqjax.unroll(cell, params, xs)[1])))
    one, all_ = jax.jit(gradient), jax.jit(jax.vmap(gradient))
    each = [jax.tree.map(lambda a, i=i: a[i], sets) for i in range(16)]
    return measure(
        {
            "vmap": lambda: jax.block_until_ready(all_(sets)),
            "calls": lambda: jax.block_until_ready([one(params) for params in each]),
        },
        rounds,
    )


def main() -> None:
    keep_freed_memory()  # as every experiment does; it serves the others as well
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=list(seqjax.CELLS))
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    shapes = [tuple(map(int, text.split(","))) for text in arguments.shapes]
    for name in arguments.cells:
        cell = seqjax.CELLS[name]
        contenders = {shape: calls(cell, shape) for shape in shapes}
        compile_all([call for functions in contenders.values() for call in functions.values()])
        rows = []
        for shape, functions in contenders.items():
            medians = measure(functions, arguments.rounds)
            rows.append({option: value / medians["plain"] for option, value in medians.items()})
            columns = "  ".join(f"{option} {value:.2f}" for option, value in medians.items())
            print(f"{name:5} {','.join(map(str, shape)):16} {columns}", flush=True)
        means = {option: geometric_mean([row[option] for row in rows]) for option in rows[0]}
        print(name, "geometric means of the ratios:", "  ".join(f"{o} {mean:.2f}" for o, mean in means.items()))
        for shape in shapes:
            every = round(shape[1] ** 0.5)
            share = kept_bytes(cell, shape, every) / kept_bytes(cell, shape, None)
            print(f"{name} {shape}: checkpoint_every={every} keeps {share:.3f} of the bytes")
        medians = members(cell, arguments.rounds)
        print(f"{name} 16 sets of weights: vmap {medians['vmap']:.2f} ms, calls {medians['calls']:.2f} ms")


if __name__ == "__main__":
    main()
