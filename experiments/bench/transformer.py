"""The Transformer language model: training and generation, ours beside the same model in PyTorch.

    python -m experiments.bench.transformer [--rounds 7] [--steps 20] [--json FILE]

Training: nanoGPT's configuration for a CPU (4 layers, 128, 4 heads, context 64, batch 12, learned positions, 65
characters) with clipping and AdamW, milliseconds a step. Generation: tokens a second, one row after a prompt of one
token, 512 tokens with a cache of keys and values. Both sides run in one process, a block of steps each in turn, in
random order; printed are medians. PyTorch runs eagerly, with its fused attention and fused AdamW; without PyTorch, ours
is measured alone.
"""

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.bench.recurrence import measure, versions
from seqjax import decoding, losses, nn, train
from seqjax.memory import keep_freed_memory
from seqjax.models import transformer_lm

V, B, T, LENGTH = 65, 12, 64, 512
CONFIG = transformer_lm.TransformerConfig(context=T, positions="learned", bias=False)


def ours(steps):
    """name -> a function that trains for so many steps, and one that generates."""
    init, apply = nn.purify(lambda key: transformer_lm.TransformerLM(CONFIG, V, rngs=nnx.Rngs(key)))
    tokens = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)

    def loss_fn(params, extra, batch, key, hyper):
        _, logits = apply(params, batch[:, :-1])
        return losses.cross_entropy(logits, batch[:, 1:]), ((), {})

    optimizer = train.make_optimizer()
    step = jax.jit(train.make_step(loss_fn, optimizer), donate_argnums=0)
    state = [train.init_state(init(jax.random.key(0)), (), jax.random.key(1), optimizer(train.Hyper()))]

    def training():
        for _ in range(steps):
            state[0], _ = step(state[0], tokens, train.Hyper())
        jax.block_until_ready(state[0])

    long = transformer_lm.TransformerConfig(context=LENGTH, positions="learned", bias=False)
    init_long, apply_long = nn.purify(lambda key: transformer_lm.TransformerLM(long, V, rngs=nnx.Rngs(key)))
    params = init_long(jax.random.key(0))
    start = apply_long(params, 1, method="init_state")
    prefill = jax.jit(partial(apply_long, method="prefill"))
    decode = partial(apply_long, method="step")

    def generation():
        begun, logits = prefill(params, start, jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))
        key = jax.random.key(2)
        jax.block_until_ready(decoding.sample(decode, params, begun, logits, key, max_length=LENGTH - 1))

    return training, generation


def theirs(steps):
    """The same with PyTorch."""
    import torch
    from torch import nn as tnn
    from torch.nn import functional as F

    class Block(tnn.Module):
        def __init__(self, d, heads):
            super().__init__()
            self.heads = heads
            self.norm_1, self.norm_2 = (tnn.LayerNorm(d, bias=False) for _ in range(2))
            self.qkv, self.out = tnn.Linear(d, 3 * d, bias=False), tnn.Linear(d, d, bias=False)
            self.up, self.down = tnn.Linear(d, 4 * d, bias=False), tnn.Linear(4 * d, d, bias=False)

        def forward(self, x, cache, at):
            b, t, d = x.shape
            parts = self.qkv(self.norm_1(x)).split(d, dim=2)
            q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in parts)
            if cache is not None:
                cache[0][:, :, at : at + t], cache[1][:, :, at : at + t] = k, v
                k, v = cache[0][:, :, : at + t], cache[1][:, :, : at + t]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class Model(tnn.Module):
        def __init__(self, context):
            super().__init__()
            self.tokens, self.places = tnn.Embedding(V, CONFIG.d_model), tnn.Embedding(context, CONFIG.d_model)
            self.blocks = tnn.ModuleList(Block(CONFIG.d_model, CONFIG.n_heads) for _ in range(CONFIG.n_layers))
            self.norm = tnn.LayerNorm(CONFIG.d_model, bias=False)

        def forward(self, tokens, caches=None, at=0):
            x = self.tokens(tokens) + self.places(torch.arange(at, at + tokens.shape[1]))
            for i, block in enumerate(self.blocks):
                x = block(x, None if caches is None else caches[i], at)
            return self.norm(x) @ self.tokens.weight.T

    torch.manual_seed(0)
    model, tokens = Model(T), torch.randint(0, V, (B, T + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)

    def training():
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        loss.item()

    long = Model(LENGTH)
    head = CONFIG.d_model // CONFIG.n_heads

    @torch.inference_mode()
    def generation():
        caches = [[torch.zeros(1, CONFIG.n_heads, LENGTH, head) for _ in range(2)] for _ in range(CONFIG.n_layers)]
        token = torch.zeros(1, 1, dtype=torch.long)
        for at in range(LENGTH - 1):
            token = torch.multinomial(F.softmax(long(token, caches, at)[:, -1], dim=-1), 1)

    return training, generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="training steps in a row")
    parser.add_argument("--json", help="write the measurements to this file")
    arguments = parser.parse_args()

    keep_freed_memory()  # as every experiment does; it serves PyTorch as well
    contenders = {"seqjax": ours(arguments.steps)}
    try:
        contenders["torch"] = theirs(arguments.steps)
    except ImportError:
        print("PyTorch is not installed")
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    training = measure({name: pair[0] for name, pair in contenders.items()}, arguments.rounds)
    generation = measure({name: pair[1] for name, pair in contenders.items()}, arguments.rounds)
    rows = {
        "training, ms a step": {name: ms / arguments.steps for name, ms in training.items()},
        "generation, tokens/s": {name: (LENGTH - 1) / ms * 1e3 for name, ms in generation.items()},
    }
    for title, values in rows.items():
        ratio = f"   seqjax/torch {values['seqjax'] / values['torch']:.2f}" if "torch" in values else ""
        print(f"{title:22}", "  ".join(f"{name} {value:8.2f}" for name, value in values.items()), ratio)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
