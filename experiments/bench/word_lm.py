"""Word language model: ours beside torch's example "word_language_model", validation perplexity and time a step.

    python -m experiments.bench.word_lm --corpus text8.gz [--words 1000000] [--steps 1000] [--seeds 1 2]

The model of both: embedding, dropout, layers of LSTM with dropout between, dropout, linear output. The text is the
first --words of the corpus, of which nine tenths train; words that occur fewer than --min_count times there are <unk>.
Both begin with the same weights, uniform in ±0.1 and in the LSTM ±1/√H as in torch, and get the same batches and the
same numbers for AdamW (cosine schedule, no weight decay). Masks of dropout differ; torch has two biases a gate, which
move as one of double step. Each contender has a process of its own, and the processes take turns of --turn steps, so
that a noisy machine disturbs both alike; milliseconds are medians over turns, with reading batches, without compiling.
Where others use the cores too, set OMP_WAIT_POLICY=PASSIVE: else torch's threads spin for each other, at many times the
cost.
Imports jax, flax, optax and, if there, torch.
"""

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data import BPTTWindows, evaluation_windows
from seqjax.data.splits import text_words
from seqjax.text import train_tokenizer
from seqjax.train import unit_schedule

B1, B2, CLIP = 0.9, 0.99, 1.0


class Contender(NamedTuple):
    """Training and evaluation; both wait until all is done."""

    step: Callable[[int, Any], None]  # (number, batch)
    perplexity: Callable[[np.ndarray], float]  # tokens -> perplexity


def initial(args: argparse.Namespace, vocab_size: int, seed: int) -> dict[str, Any]:
    """The weights of both, as the tree of ours."""
    from seqjax.cells import lstm

    rng = np.random.default_rng(seed)

    def uniform(bound, *shape):
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    h, k = args.size, 1 / math.sqrt(args.size)
    layers = {
        depth: lstm.Params(uniform(k, h, 4 * h), uniform(k, h, 4 * h), uniform(k, 4 * h) + uniform(k, 4 * h))
        for depth in range(args.layers)
    }
    embed, out = uniform(0.1, vocab_size, h), uniform(0.1, h, vocab_size)
    return {
        "embed": {"w": embed},
        "rnn": {"layers": layers},
        "out": {"w": out, "b": np.zeros(vocab_size, np.float32)},
    }


def ours(args: argparse.Namespace, vocab_size: int, seed: int) -> Contender:
    from functools import partial

    from flax import nnx

    from seqjax import losses, nn, train
    from seqjax.models import rnn_lm

    config = rnn_lm.Config(d_embed=args.size, d_hidden=args.size, n_layers=args.layers)
    init, apply = nn.purify(lambda key: rnn_lm.RNNLM(config, vocab_size, rngs=nnx.Rngs(key)))
    params = jax.tree.map(jnp.asarray, initial(args, vocab_size, seed))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0)))

    def loss_fn(params, carry, batch, key, hyper):
        dropout = hyper.dropout if args.dropout > 0 else 0.0
        carry, logits = apply(params, batch.inputs, carry, resets=batch.resets, dropout=dropout, key=key)
        return losses.cross_entropy(logits, batch.targets), (carry, {})

    optimizer = train.make_optimizer("adamw", unit_schedule("cosine", args.steps, args.warmup))
    hyper = train.Hyper(lr=args.lr, b1=B1, b2=B2, clip=CLIP, dropout=args.dropout)
    carry = apply(params, args.batch, method="init_state")
    state = train.init_state(params, carry, jax.random.key(seed), optimizer(hyper))
    update = jax.jit(train.make_step(loss_fn, optimizer), donate_argnums=0)
    hyper = jax.tree.map(np.float32, hyper)

    def step(number, batch):
        nonlocal state
        state, metrics = update(state, batch, hyper)
        jax.block_until_ready(metrics)

    @partial(jax.jit, donate_argnums=1)
    def window(params, carry, batch):
        carry, logits = apply(params, batch.inputs, carry, resets=batch.resets)
        return carry, losses.cross_entropy(logits, batch.targets, where=batch.where)

    def perplexity(tokens):
        carry, total = apply(state.params, args.batch, method="init_state"), np.zeros(2)
        for batch in evaluation_windows(tokens, batch_size=args.batch, window=args.window):
            carry, loss = window(state.params, carry, batch)
            total += [float(x) for x in loss]
        return math.exp(total[0] / total[1])

    return Contender(step, perplexity)


def torch_example(args: argparse.Namespace, vocab_size: int, seed: int) -> Contender:
    import torch

    from seqjax.convert import to_torch

    torch.manual_seed(seed)

    class RNNModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(args.dropout)
            self.encoder = torch.nn.Embedding(vocab_size, args.size)
            self.rnn = torch.nn.LSTM(args.size, args.size, args.layers, dropout=args.dropout)
            self.decoder = torch.nn.Linear(args.size, vocab_size)

        def forward(self, tokens, carry):
            hs, carry = self.rnn(self.drop(self.encoder(tokens)), carry)
            return self.decoder(self.drop(hs)), carry

    weights, model = initial(args, vocab_size, seed), RNNModel()
    layers = to_torch(list(weights["rnn"]["layers"].values()))
    model.load_state_dict(
        {
            "encoder.weight": torch.tensor(weights["embed"]["w"]),
            "decoder.weight": torch.tensor(weights["out"]["w"].T.copy()),
            "decoder.bias": torch.tensor(weights["out"]["b"]),
            **{f"rnn.{name}": torch.tensor(np.asarray(array)) for name, array in layers.items()},
        }
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(B1, B2), eps=1e-8, weight_decay=0.0)
    # Numbers, not arrays: jax's threads shall have no part in torch's time.
    factors = [float(f) for f in jax.vmap(unit_schedule("cosine", args.steps, args.warmup))(jnp.arange(args.steps))]

    def zeros():
        return tuple(torch.zeros(args.layers, args.batch, args.size) for _ in range(2))

    carry = zeros()

    def time_major(array):
        return torch.from_numpy(np.ascontiguousarray(array.T)).long()

    def step(number, batch):
        nonlocal carry
        if batch.resets[:, 0].any():
            carry = zeros()
        carry = tuple(c.detach() for c in carry)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * factors[min(number, args.steps - 1)]
        optimizer.zero_grad(set_to_none=True)
        logits, carry = model(time_major(batch.inputs), carry)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), time_major(batch.targets).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    def perplexity(tokens):
        model.eval()
        carry, total, count = zeros(), 0.0, 0
        with torch.no_grad():
            for batch in evaluation_windows(tokens, batch_size=args.batch, window=args.window):
                logits, carry = model(time_major(batch.inputs), carry)
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), time_major(batch.targets).flatten(), reduction="none"
                )
                where = torch.from_numpy(batch.where.T.copy()).flatten()
                total, count = total + float(losses[where].sum()), count + int(where.sum())
        return math.exp(total / count)

    return Contender(step, perplexity)


CONTENDERS = {"ours": ours, "torch": torch_example}


def corpus(args: argparse.Namespace) -> tuple[int, np.ndarray, np.ndarray]:
    """Vocabulary size, training and validation tokens."""
    splits = text_words(args.corpus, limit=args.words)
    tokenizer = train_tokenizer("space", (text for text, _ in splits["train"]), min_count=args.min_count)
    train, validation = (
        np.concatenate([tokenizer.encode(text) for text, _ in splits[split]]) for split in ("train", "validation")
    )
    return tokenizer.vocab_size, train, validation


def work(args: argparse.Namespace) -> None:
    """A contender's process: waits for a line, answers with one. A number asks for so many steps, else it ends."""
    vocab_size, tokens, validation = corpus(args)
    windows = BPTTWindows(tokens, batch_size=args.batch, window=args.window, seed=0)
    contender, done = CONTENDERS[args.worker](args, vocab_size, args.seed), 0
    print(json.dumps({"vocabulary": vocab_size, "train": len(tokens), "validation": len(validation)}), flush=True)
    while (line := sys.stdin.readline().strip()).isdigit():
        began = time.perf_counter()
        for number in range(done, done + int(line)):
            contender.step(number, windows[number])
        done += int(line)
        print(json.dumps(1e3 * (time.perf_counter() - began) / int(line)), flush=True)
    print(json.dumps(contender.perplexity(validation)), flush=True)


def compare(args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """contender -> perplexity, milliseconds a step, and the median over turns of ours by theirs."""
    names = [name for name in CONTENDERS if name == "ours" or importlib.util.find_spec(name)]
    command = [sys.executable, "-m", "experiments.bench.word_lm", *sys.argv[1:], "--seed", str(seed), "--worker"]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }

    def ask(name, line):
        if line:
            workers[name].stdin.write(f"{line}\n")
            workers[name].stdin.flush()
        return json.loads(workers[name].stdout.readline())

    for name in names:
        sizes = ask(name, "")
    print(f"seed {seed}:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()), flush=True)
    times = {name: [] for name in names}
    left, turn = args.steps, 0
    while left > 0:
        steps = min(args.turn, left)
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(ask(name, steps))
            time.sleep(0.5)  # torch's threads spin on for a while
        left, turn = left - steps, turn + 1
        print(f"{left} steps left", {name: round(ms[-1]) for name, ms in times.items()}, file=sys.stderr, flush=True)
    # The first turn compiles.
    rows = {
        name: {
            "perplexity": ask(name, "end"),
            "ms": statistics.median(times[name][1:] or times[name]),
            "ratio": statistics.median(a / b for a, b in zip(times["ours"], times[name], strict=True)),
        }
        for name in names
    }
    for worker in workers.values():
        worker.communicate()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a text file, or one in .gz")
    for name, default in {"words": 1_000_000, "min_count": 5, "size": 200, "layers": 2, "batch": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"window": 35, "steps": 1000, "warmup": 100, "turn": 25, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    print(
        "| seed | contender | validation perplexity | ms a step | ours / theirs, turn by turn |\n|---|---|---|---|---|"
    )
    for seed in args.seeds:
        rows = compare(args, seed)
        for name, row in rows.items():
            print(f"| {seed} | {name} | {row['perplexity']:.2f} | {row['ms']:.1f} | {row['ratio']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
