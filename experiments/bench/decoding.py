"""Greedy and beam search of encoder-decoders, ours beside the same models in PyTorch: sentences a second.

    python -m experiments.bench.decoding [--models rnn transformer] [--batches 1 16 64] [--turns 7] [--json FILE]

"rnn" is of Joey NMT's kind: embeddings of 256, a bidirectional GRU of 2 x 256 and a GRU decoder of 512 with one layer
each, Luong's bilinear attention, input feeding. "transformer" has 3 + 3 layers of 256, 4 heads, MLPs of 1,024.
Vocabularies have 8,000 words. The beam has 5 hypotheses, ranked by log p / ((5 + n) / 6), and a sentence is done when 5
are finished, or at 40 tokens. Sources have 5 to 30 tokens, padded in one batch; batch 1 takes 4 sources of 17 tokens
one after the other. Reading the sources is part of the time.

Weights are random, the same for all, and all must write the same texts. What random weights lack is set: logits as far
apart as those of a trained model, and a bias of <eos> that grows with time, so that texts get 10 to 25 tokens.

"torch" is eager, in inference mode, on 2 threads: fused attention; keys and values in place; what does not depend on
the text made before (the source's keys and values, inputs times matrix for every word); no loop but that over time; one
copy of the caches where hypotheses change places; nothing done that no hypothesis needs. "torch, shrinking" also drops
sentences that are done. "torch, compiled", which has to be asked for, has `torch.compile` over the step.

Each contender has a process of its own, and these take turns, so that a noisy machine disturbs all alike, and no
contender's threads spin in another's time. Printed are medians over turns. Without PyTorch, ours is measured alone.
Where others use the cores too, torch's threads wait for each other and its numbers mean nothing.
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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.bench.recurrence import versions
from seqjax import decoding, nn, positions
from seqjax.convert import to_torch
from seqjax.memory import keep_freed_memory
from seqjax.models.rnn_seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from seqjax.models.transformer_seq2seq import TransformerSeq2Seq, TransformerSeq2SeqConfig
from seqjax.text import EOS, SOS

V, LENGTH, WIDTH, ALPHA, THREADS = 8_000, 40, 5, 1.0, 2
SHRINK = 0.75  # sentences are left out when so many of the rows are left
RNN = RNNSeq2SeqConfig("gru", d_embed=256, d_hidden=512, attention="general", input_feeding=True, bridge="dense")
TRANSFORMER = TransformerSeq2SeqConfig(tied="none")
MODELS = {"rnn": partial(RNNSeq2Seq, RNN, V, V), "transformer": partial(TransformerSeq2Seq, TRANSFORMER, V, V)}
# Factors of the output matrix; biases of <eos> at time 0 and their growth.
SHAPE = {"rnn": (10.0, 2.0, 0.6), "transformer": (4.0, 2.0, 0.6)}


class Weights(NamedTuple):
    """A model's weights, and the biases of its output layer at each time."""

    params: Any
    biases: Any  # [LENGTH, V]


class Texts(NamedTuple):
    """The best text of each source."""

    tokens: np.ndarray  # [B, LENGTH], 0 after <eos>
    log_probs: np.ndarray  # [B]


def weights(model: str) -> Weights:
    """Random weights."""
    init, _ = nn.purify(lambda key: MODELS[model](rngs=nnx.Rngs(key)))
    params, (scale, bias, growth) = init(jax.random.key(0)), SHAPE[model]
    # No bias is 0, so that none can be forgotten; norms keep their gains of 1.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: np.asarray(a) if a.any() else 0.1 * rng.standard_normal(a.shape, np.float32), params
    )
    if model == "rnn":
        for embed in ("source", "target"):
            params[embed]["w"] = params[embed]["w"] * np.sqrt(np.float32(RNN.d_embed))
    params["out"]["w"] = params["out"]["w"] * np.float32(scale)
    biases = np.tile(params["out"]["b"], (LENGTH, 1))
    biases[:, EOS] += bias + growth * np.arange(LENGTH, dtype=np.float32)
    return Weights(params, biases)


def sources(batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of sources and their lengths."""
    rng = np.random.default_rng(batch)
    lengths = rng.integers(5, 31, batch) if batch > 1 else np.full(4, 17)
    ids = rng.integers(EOS + 1, V, (len(lengths), lengths.max()))
    ids = np.where(np.arange(ids.shape[1]) < lengths[:, None] - 1, ids, EOS)
    ids = np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, 0).astype(np.int32)
    lengths = lengths.astype(np.int32)
    return [(ids[i : i + batch], lengths[i : i + batch]) for i in range(0, len(ids), batch)]


def ours(model: str, strategy: str = "gather") -> Callable[[str], Callable]:
    """search -> a function of sources and lengths that gives the texts."""
    _, apply = nn.purify(lambda key: MODELS[model](rngs=nnx.Rngs(key)))
    params = jax.tree.map(jnp.asarray, weights(model))

    def at(params, t):
        b = jax.lax.dynamic_index_in_dim(params.biases, t, keepdims=False)
        return params.params | {"out": {"w": params.params["out"]["w"], "b": b}}

    def step(params, state, tokens):
        t, state = state
        state, logits = apply(at(params, t), state, tokens, method="step")
        return (t + 1, state), logits

    @partial(jax.jit, static_argnames="search")
    def translate(params, source, lengths, search):
        first = at(params, 0)
        state = apply(first, source.shape[0], LENGTH, method="init_state")
        state, logits = apply(first, state, source, lengths, method="prefill")
        begun = step, params, (jnp.int32(1), state), logits
        if search == "greedy":
            texts = decoding.greedy(*begun, max_length=LENGTH, eos=EOS)
            return Texts(texts.tokens, texts.scores)
        beams = decoding.beam_search(
            *begun, max_length=LENGTH, eos=EOS, beam_size=WIDTH, length_penalty="wu", alpha=ALPHA, strategy=strategy,
            stop="first",
        )  # fmt: skip
        return Texts(beams.tokens[:, 0], beams.log_probs[:, 0])

    return lambda search: lambda source, lengths: Texts(*map(np.asarray, translate(params, source, lengths, search)))


class TorchRNN:
    """The recurrent model over torch's tensors; a state is [h, h̃, (keys, values, mask)]."""

    def __init__(self, model: Weights):
        import torch

        self.torch = torch
        p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), model.params)
        self.embed_source = p["source"]["w"]
        self.encoder = torch.nn.GRU(RNN.d_embed, RNN.d_hidden // 2, bidirectional=True, batch_first=True)
        layers = to_torch([model.params["encoder"]["layers"][0]])
        self.encoder.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in layers.items()})
        (bridge,), (cell,) = p["bridge"].values(), p["decoder"]["layers"].values()
        self.bridge = bridge["w"].T.contiguous(), bridge["b"]
        self.inputs = p["target"]["w"] @ cell.w_x[: RNN.d_embed] + cell.b  # [V, 3 H], of all tokens
        self.w_feed, self.w_h, self.b_h = cell.w_x[RNN.d_embed :].contiguous(), cell.w_h, cell.b_h
        self.w_keys = p["attention"]["w"].T.contiguous()
        self.merge = p["merge"]["w"].T.contiguous(), p["merge"]["b"]
        self.w_out, self.biases = p["out"]["w"].T.contiguous(), torch.tensor(model.biases)

    def prefill(self, source, lengths):
        torch, F = self.torch, self.torch.nn.functional
        xs = torch.nn.utils.rnn.pack_padded_sequence(
            self.embed_source[source], lengths, batch_first=True, enforce_sorted=False
        )
        values, last = self.encoder(xs)
        values, _ = torch.nn.utils.rnn.pad_packed_sequence(values, batch_first=True)
        h = F.linear(torch.cat([last[0], last[1]], dim=1), *self.bridge)
        # The matrix of the score goes to the keys: once a source instead of once a step.
        keys = (values @ self.w_keys).transpose(1, 2).contiguous()
        mask = torch.where(torch.arange(source.shape[1]) < lengths[:, None], 0.0, -torch.inf)[:, None]
        return [h, torch.zeros_like(h), (keys, values, mask)]

    def step(self, state, tokens, t):
        torch, F = self.torch, self.torch.nn.functional
        h, feed, (keys, values, mask) = state
        zx = torch.addmm(self.inputs[tokens], feed, self.w_feed).chunk(3, dim=1)
        zh = torch.addmm(self.b_h, h, self.w_h).chunk(3, dim=1)
        r, z = torch.sigmoid(zx[0] + zh[0]), torch.sigmoid(zx[1] + zh[1])
        n = torch.tanh(torch.addcmul(zx[2], r, zh[2]))
        h = torch.lerp(n, h, z)
        scores = torch.baddbmm(mask, h.view(keys.shape[0], -1, h.shape[1]), keys)
        context = torch.bmm(scores.softmax(dim=-1), values).view_as(h)
        feed = torch.tanh(F.linear(torch.cat([context, h], dim=1), *self.merge))
        return [h, feed, state[2]], F.linear(feed, self.w_out, self.biases[t])

    def repeat(self, state, width):
        return [a.repeat_interleave(width, dim=0) for a in state[:2]] + state[2:]

    def reorder(self, state, parents, t):
        return [a.index_select(0, parents) for a in state[:2]] + state[2:]

    def keep(self, state, sentences, rows, t):
        return [a[rows] for a in state[:2]] + [tuple(a[sentences] for a in state[2])]


class TorchTransformer:
    """The Transformer over torch's tensors; a state is [caches, (keys and values of the source, mask)].

    Caches are [2, layers, rows, heads, LENGTH, H], written in place.
    """

    def __init__(self, model: Weights):
        import torch

        self.torch = torch
        p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), model.params)

        def matrix(w, n_in=1):
            return w.reshape(int(np.prod(w.shape[:n_in])), -1).T.contiguous()

        def own(layer):
            a = layer.attention
            qkv = torch.cat([matrix(a.w_q), matrix(a.w_kv)]), torch.cat([a.b_q.flatten(), a.b_kv.flatten()])
            return {
                "norm": (layer.g_attention, layer.b_attention), "qkv": qkv, "o": (matrix(a.w_o, 2), a.b_o),
                "norm_mlp": (layer.g_mlp, layer.b_mlp), "in": (matrix(layer.w_in), layer.b_in),
                "out": (matrix(layer.w_out), layer.b_out),
            }  # fmt: skip

        def both(layer):
            a = layer.cross
            return own(layer.own) | {
                "norm_cross": (layer.g_cross, layer.b_cross), "q": (matrix(a.w_q), a.b_q.flatten()),
                "kv": (matrix(a.w_kv), a.b_kv.flatten()), "o_cross": (matrix(a.w_o, 2), a.b_o),
            }  # fmt: skip

        self.encoder = [own(layer) for layer in p["encoder"].values()]
        self.decoder = [both(layer) for layer in p["decoder"].values()]
        self.norms = [tuple(norm) for norm in p["norms"].values()]
        scale = math.sqrt(TRANSFORMER.d_model)
        self.embed_source, self.embed_target = p["source"]["w"] * scale, p["target"]["w"] * scale
        self.places = torch.tensor(np.asarray(positions.sinusoidal(LENGTH, TRANSFORMER.d_model)))
        self.w_out, self.biases = matrix(p["out"]["w"]), torch.tensor(model.biases)

    def norm(self, x, pair):
        return self.torch.nn.functional.layer_norm(x, x.shape[-1:], *pair)

    def heads(self, x):
        """[B, T, D] -> [B, N, T, H]."""
        return x.view(*x.shape[:2], TRANSFORMER.n_heads, -1).transpose(1, 2)

    def mlp(self, x, layer):
        F = self.torch.nn.functional
        z = F.gelu(F.linear(self.norm(x, layer["norm_mlp"]), *layer["in"]), approximate="tanh")
        return x + F.linear(z, *layer["out"])

    def prefill(self, source, lengths):
        torch, F = self.torch, self.torch.nn.functional
        mask = (torch.arange(source.shape[1]) < lengths[:, None])[:, None, None]
        x = self.embed_source[source] + self.places[: source.shape[1]]
        for layer in self.encoder:
            q, k, v = map(self.heads, F.linear(self.norm(x, layer["norm"]), *layer["qkv"]).chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + F.linear(y.transpose(1, 2).flatten(2), *layer["o"])
            x = self.mlp(x, layer)
        x = self.norm(x, self.norms[0])
        memory = []
        for layer in self.decoder:
            k, v = F.linear(x, *layer["kv"]).chunk(2, dim=-1)
            memory.append((self.heads(k).contiguous(), self.heads(v).contiguous()))
        return [self.room(len(source)), (memory, mask)]

    def room(self, rows):
        head = TRANSFORMER.d_model // TRANSFORMER.n_heads
        return self.torch.zeros(2, len(self.decoder), rows, TRANSFORMER.n_heads, LENGTH, head)

    def step(self, state, tokens, t):
        F = self.torch.nn.functional
        caches, (memory, mask) = state
        x = self.embed_target[tokens] + self.places[t]
        for i, (layer, (keys, values)) in enumerate(zip(self.decoder, memory, strict=True)):
            qkv = F.linear(self.norm(x, layer["norm"]), *layer["qkv"])
            q, k, v = qkv.view(len(x), 3, TRANSFORMER.n_heads, 1, -1).unbind(1)
            caches[0, i, :, :, t : t + 1], caches[1, i, :, :, t : t + 1] = k, v
            y = F.scaled_dot_product_attention(q, caches[0, i, :, :, : t + 1], caches[1, i, :, :, : t + 1])
            x = x + F.linear(y.flatten(1), *layer["o"])
            q = F.linear(self.norm(x, layer["norm_cross"]), *layer["q"]).view(len(keys), -1, x.shape[1])
            y = F.scaled_dot_product_attention(self.heads(q), keys, values, attn_mask=mask)
            x = x + F.linear(y.transpose(1, 2).reshape(x.shape), *layer["o_cross"])
            x = self.mlp(x, layer)
        return state, F.linear(self.norm(x, self.norms[1]), self.w_out, self.biases[t])

    def repeat(self, state, width):
        return [state[0].repeat_interleave(width, dim=2), state[1]]

    def reorder(self, state, parents, t):
        caches = state[0]
        caches[..., : t + 1, :] = caches[..., : t + 1, :].index_select(2, parents)
        return state

    def keep(self, state, sentences, rows, t):
        caches, (memory, mask) = state
        memory = [tuple(a[sentences] for a in pair) for pair in memory]
        return [caches.index_select(2, rows), (memory, mask[sentences])]


def keeping(model, state, live, width, t):
    """The state of the sentences in ``live``, indices, alone."""
    rows = live if width == 1 else (live[:, None] * width + model.torch.arange(width)).flatten()
    return model.keep(state, live, rows, t)


def torch_greedy(model, step, source, lengths, shrink) -> tuple:
    """Tokens [B, LENGTH] and log-probabilities [B]."""
    torch = model.torch
    tokens, scores = torch.zeros(len(source), LENGTH, dtype=torch.long), torch.zeros(len(source))
    sentences, done = torch.arange(len(source)), torch.zeros(len(source), dtype=torch.bool)
    state, logits = step(model.prefill(source, lengths), torch.full((len(source),), SOS), 0)
    for t in range(LENGTH):
        log_probs, token = logits.log_softmax(dim=1).max(dim=1)
        token.masked_fill_(done, 0)
        log_probs.masked_fill_(done, 0)
        tokens[sentences, t] = token
        scores[sentences] += log_probs
        done |= token == EOS
        left = len(done) - int(done.sum())
        if left == 0 or t + 1 == LENGTH:
            break
        if shrink and left <= SHRINK * len(done):
            live = (~done).nonzero()[:, 0]
            state = keeping(model, state, live, 1, t)
            token, sentences, done = token[live], sentences[live], done[live]
        state, logits = step(state, token, t + 1)
    return tokens, scores


def torch_beam(model, step, source, lengths, shrink) -> tuple:
    """The same for the best texts of a beam search."""
    torch, n_sources, n = model.torch, len(source), 2 * WIDTH
    best_tokens, best_scores = torch.zeros(n_sources, LENGTH, dtype=torch.long), torch.zeros(n_sources)

    def pick(a, index):
        """a [B, m, …] at index [B, k]."""
        rows = index + torch.arange(len(a))[:, None] * a.shape[1]
        return a.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, *a.shape[2:])

    def merge(finished, scores, tokens, log_probs):
        scores, order = torch.cat([finished[0], scores], dim=1).topk(WIDTH, dim=1)
        rest = (pick(torch.cat(pair, dim=1), order) for pair in zip(finished[1:], (tokens, log_probs), strict=True))
        return [scores, *rest]

    def penalty(length):
        return ((5 + length) / 6) ** ALPHA

    def blank(value):
        tokens = torch.zeros(n_sources, WIDTH, LENGTH, dtype=torch.long)
        return [torch.full((n_sources, WIDTH), value), tokens, torch.zeros(n_sources, WIDTH)]

    sentences, done = torch.arange(n_sources), torch.zeros(n_sources, dtype=torch.bool)
    state, logits = step(model.prefill(source, lengths), torch.full((n_sources,), SOS), 0)
    state, logits = model.repeat(state, WIDTH), logits.repeat_interleave(WIDTH, dim=0)
    finished, (live, tokens, _) = blank(-torch.inf), blank(0.0)
    live[:, 1:] = -torch.inf
    for t in range(LENGTH):
        top, ids = logits.log_softmax(dim=1).topk(n, dim=1)
        scores = (live.view(-1, 1) + top).view(-1, WIDTH * n)
        scores, place = scores.topk(n, dim=1)
        token, parent = ids.view_as(top).view(-1, WIDTH * n).gather(1, place), place // n
        ended = token == EOS
        ends = ended[:, :WIDTH] & ~done[:, None] & scores[:, :WIDTH].isfinite()
        if ends.any():
            written = pick(tokens, parent[:, :WIDTH])
            written[:, :, t] = token[:, :WIDTH]
            reached = torch.where(ends, scores[:, :WIDTH] / penalty(t + 1), -torch.inf)
            finished = merge(finished, reached, written, scores[:, :WIDTH])
        live, order = scores.masked_fill(ended, -torch.inf).topk(WIDTH, dim=1)
        token, parent = token.gather(1, order), parent.gather(1, order)
        tokens = pick(tokens, parent)
        tokens[:, :, t] = token
        done |= finished[0].isfinite().all(dim=1) | ~live[:, 0].isfinite()
        left = len(done) - int(done.sum())
        if left == 0 or t + 1 == LENGTH:
            break
        parent = parent + torch.arange(len(done))[:, None] * WIDTH
        if shrink and left <= SHRINK * len(done):
            best_tokens[sentences], best_scores[sentences] = finished[1][:, 0], finished[2][:, 0]
            kept = (~done).nonzero()[:, 0]
            parent = parent[kept]
            state = model.keep(state, kept, parent.flatten(), t)
            live, tokens, token, sentences, done = (a[kept] for a in (live, tokens, token, sentences, done))
            finished = [a[kept] for a in finished]
        else:
            state = model.reorder(state, parent.flatten(), t)
        state, logits = step(state, token.flatten(), t + 1)
    cut = torch.where(done[:, None], -torch.inf, live / penalty(t + 1))
    finished = merge(finished, cut, tokens, live)
    best_tokens[sentences], best_scores[sentences] = finished[1][:, 0], finished[2][:, 0]
    return best_tokens, best_scores


def theirs(model: str, *, shrink: bool = False, compiled: bool = False) -> Callable[[str], Callable]:
    """search -> a function of sources and lengths that gives the texts."""
    import torch

    torch.set_num_threads(THREADS)
    built = {"rnn": TorchRNN, "transformer": TorchTransformer}[model](weights(model))
    step = torch.compile(built.step) if compiled else built.step
    searches = {"greedy": torch_greedy, "beam": torch_beam}

    def search(name):
        @torch.inference_mode()
        def translate(source, lengths):
            inputs = torch.from_numpy(source).long(), torch.from_numpy(lengths).long()
            return Texts(*(a.numpy() for a in searches[name](built, step, *inputs, shrink)))

        return translate

    return search


CONTENDERS = {
    "seqjax": ours,
    "seqjax, ancestry": partial(ours, strategy="ancestry"),
    "torch": theirs,
    "torch, shrinking": partial(theirs, shrink=True),
    "torch, compiled": partial(theirs, compiled=True),
}
DEFAULT = list(CONTENDERS)[:-1]


def work(name: str) -> None:
    """A contender's process: reads [model, search, batch], answers with milliseconds and what was written."""
    keep_freed_memory()  # as every experiment does
    built: dict[str, Any] = {}
    for line in sys.stdin:
        model, search, batch = json.loads(line)
        if model not in built:
            built[model] = CONTENDERS[name](model)
        call, batches = built[model](search), sources(batch)
        began = time.perf_counter()
        texts = [call(*arrays) for arrays in batches]
        ms = 1e3 * (time.perf_counter() - began)
        tokens, log_probs = (np.concatenate(arrays) for arrays in zip(*texts, strict=True))
        print(json.dumps([ms, tokens.tolist(), log_probs.tolist()]), flush=True)


def agree(case: tuple, answers: dict[str, Texts]) -> None:
    """Raise unless all wrote the texts of the first, but for near ties, which rounding decides."""
    (_, first), *others = answers.items()
    for name, texts in others:
        same = np.all(texts.tokens == first.tokens, axis=1)
        if same.mean() < 0.9 or not np.allclose(texts.log_probs[same], first.log_probs[same], rtol=1e-3, atol=1e-2):
            raise SystemExit(f"{case}: {name} wrote other texts, {same.mean():.0%} are the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--searches", nargs="+", default=["greedy", "beam"], choices=["greedy", "beam"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--contenders", nargs="+", default=DEFAULT, choices=list(CONTENDERS))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", help="write the measurements to this file")
    parser.add_argument("--worker", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return

    names = [name for name in args.contenders if "torch" not in name or importlib.util.find_spec("torch")]
    command = [sys.executable, "-m", "experiments.bench.decoding", "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = {name: subprocess.Popen([*command, name], text=True, **pipes) for name in names}

    def ask(name, case) -> tuple[float, Texts]:
        workers[name].stdin.write(json.dumps(case) + "\n")
        workers[name].stdin.flush()
        ms, *texts = json.loads(workers[name].stdout.readline())
        return ms, Texts(*map(np.array, texts))

    print("  ".join(f"{name} {version}" for name, version in versions().items()), flush=True)
    cases = [(model, search, batch) for model in args.models for search in args.searches for batch in args.batches]
    lengths, times = {}, {}
    for case in cases:
        # Ancestry has caches to leave where they are.
        able = [name for name in names if name != "seqjax, ancestry" or case[:2] == ("transformer", "beam")]
        answers = {name: ask(name, case)[1] for name in able for _ in range(2)}  # the first call compiles
        agree(case, answers)
        lengths[case] = (next(iter(answers.values())).tokens != 0).sum(axis=1)
        times[case] = {name: [] for name in able}
    for turn in range(args.turns):
        for case, measured in times.items():
            for name in list(measured)[:: 1 if turn % 2 == 0 else -1]:
                measured[name].append(ask(name, case)[0])
    for worker in workers.values():
        worker.communicate()

    rows = []
    print(f"| model | search | batch | tokens a text (5 % to 95 %) | {' | '.join(names)} | ours / best of torch |")
    print("|---" * (5 + len(names)) + "|")
    for case, measured in times.items():
        n = lengths[case]
        rates = {name: 1e3 * len(n) / statistics.median(ms) for name, ms in measured.items()}
        best = {
            us: max((r for name, r in rates.items() if ("seqjax" in name) == us), default=None) for us in (True, False)
        }
        ratio = best[True] / best[False] if None not in best.values() else None
        rows.append({"case": case, "mean length": float(n.mean()), "sentences/s": rates, "ratio": ratio})
        spread = "{:.1f} ({:.0f} to {:.0f})".format(n.mean(), *np.quantile(n, [0.05, 0.95]))
        cells = [f"{rates[name]:.1f}" if name in rates else "" for name in names]
        print("|", " | ".join([*map(str, case), spread, *cells, f"{ratio:.2f}" if ratio else ""]), "|", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
