"""The linear-chain CRF: its share of a tagger's training step, and its implementations at several lengths.

    python -m experiments.bench.crf [--shapes 32,40,23 32,60,50] [--hidden 256] [--steps 32 128 512 2048] [--batch 8]
        [--rounds 15] [--json FILE]

Shapes are B,T,Y. The tagger is a layer of LSTMs in both directions, H units together, that reads vectors of H numbers,
and an output layer; a step is the loss and all gradients. "softmax" ends in the cross-entropy of single tags; "None"
and "scan" end in a CRF, computed so; "layer" is the loss of the CRF alone, with the gradients of its parameters
and of the scores. No embeddings are looked up and no optimizer runs, which would make the share smaller.

Then, at the number of tags of the first shape, log Z and its gradients for every number of steps. Every round runs each
contender once, in random order; printed are medians in milliseconds. Imports jax and flax; nothing else.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

import seqjax
from experiments.bench.recurrence import measure, versions
from seqjax import crf, losses


class Tagger(nnx.Module):
    """Scores [B, T, Y] from vectors [B, T, H]."""

    def __init__(self, hidden: int, n_tags: int, *, rngs: nnx.Rngs):
        self.encoder = seqjax.nn.Bidirectional(seqjax.CELLS["lstm"], hidden, hidden, rngs=rngs)
        self.out = seqjax.nn.Dense(hidden, n_tags, rngs=rngs)

    def __call__(self, xs, lengths):
        return self.out(self.encoder(xs, lengths=lengths)[1])


def draw(batch: int, steps: int, n_tags: int):
    """Parameters of a CRF, scores, tags, and lengths between half of the steps and all."""
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = jax.random.randint(keys[3], (batch,), (steps + 1) // 2, steps + 1)
    scores = jax.random.normal(keys[1], (steps, batch, n_tags))
    return crf.init(keys[0], n_tags), scores, jax.random.randint(keys[2], (steps, batch), 0, n_tags), lengths


def compiled(loss: Callable, *arguments) -> Callable[[], None]:
    """Loss and gradients of the first two arguments."""
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(run(*arguments))


def taggers(batch: int, steps: int, n_tags: int, hidden: int) -> dict[str, Callable[[], None]]:
    params, scores, tags, lengths = draw(batch, steps, n_tags)
    init, apply = seqjax.purify(lambda key: Tagger(hidden, n_tags, rngs=nnx.Rngs(key)))
    weights, xs = init(jax.random.key(1)), jax.random.normal(jax.random.key(2), (batch, steps, hidden))

    def mean(total, weight):
        return total / weight

    def softmax(weights, xs):
        where = jnp.arange(steps)[None] < lengths[:, None]
        return mean(*losses.cross_entropy(apply(weights, xs, lengths), tags.T, where=where))

    def layer(params, scores, implementation=None):
        return mean(*crf.negative_log_likelihood(params, scores, tags, lengths, implementation=implementation))

    def tagger(implementation, weights, xs):
        return layer(weights[0], jnp.swapaxes(apply(weights[1], xs, lengths), 0, 1), implementation)

    named = {"None": None, "scan": "scan"}
    found = {name: compiled(partial(tagger, how), (params, weights), xs) for name, how in named.items()}
    return found | {"softmax": compiled(softmax, weights, xs), "layer": compiled(layer, params, scores)}


def partitions(batch: int, steps: int, n_tags: int) -> dict[str, Callable[[], None]]:
    params, scores, _, lengths = draw(batch, steps, n_tags)

    def total(implementation, params, scores):
        return jnp.sum(crf.log_partition(params, scores, lengths, implementation=implementation))

    return {name: compiled(partial(total, name), params, scores) for name in crf.IMPLEMENTATIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["32,40,23", "32,60,50"])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", nargs="*", type=int, default=[32, 128, 512, 2048])
    parser.add_argument("--batch", type=int, default=8, help="sequences, where lengths are compared")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the measurements to this file")
    arguments = parser.parse_args()

    shapes = [tuple(map(int, text.split(","))) for text in arguments.shapes]
    rows = []
    print("  ".join(f"{name} {version}" for name, version in versions().items()))

    def report(label: str, shape: tuple[int, ...], medians: dict[str, float], more: str = "") -> None:
        rows.append({"what": label, "shape": shape, **medians})
        columns = "  ".join(f"{name} {value:8.3f}" for name, value in medians.items())
        print(f"{label:9} {','.join(map(str, shape)):12}  {columns}{more}", flush=True)

    for shape in shapes:
        medians = measure(taggers(*shape, arguments.hidden), arguments.rounds)
        share, more = medians["layer"] / medians["None"], medians["None"] / medians["softmax"] - 1
        report("tagger", shape, medians, f"   layer/None {share:.1%}, None/softmax {more:+.1%}")
    for steps in arguments.steps:
        shape = arguments.batch, steps, shapes[0][2]
        report("log Z", shape, measure(partitions(*shape), arguments.rounds))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"versions": versions(), "hidden": arguments.hidden, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
