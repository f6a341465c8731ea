"""Recurrent encoder-decoder (Sutskever et al., 2014; Cho et al., 2014) with attention (Bahdanau et al., 2015).

    memory, final carries = stack of (bidirectional) cells, over dropout(E_source[source_s])
    carries_0 = bridge(final carries)
    h_t = stack of cells, over dropout(E[y_{t-1}]), or over [dropout(E[y_{t-1}]), h̃_{t-1}] with input feeding
    weights_t = softmax over the source (score(h_t, memory));  context_t = weights_t memory
    h̃_t = tanh([context_t, h_t] W + b)                                                    (Luong et al., 2015)
    p(y_t) = softmax(dropout(h̃_t) U + c)

Without attention context_t is the encoder's last output at every t (Cho et al.). See et al. (2017) add, where chosen:

    coverage    coverage_t = Σ_{t' < t} weights_t';  score = tanh(h_t w_q + k_s + coverage_ts w_coverage + b) · w_score
    copy        p(y) = σ(g_t) softmax(…)_y + (1 - σ(g_t)) Σ_{s: source_s = y} weights_ts
                g_t = [context_t, h_t, dropout(E[y_{t-1}])] w + b

Training without input feeding and coverage runs the decoder over all t by the fast kernels, then attends for all t at
once. With either, one loop takes the steps that decoding takes, and the output layer follows it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from seqjax.caching import Shared
from seqjax.cells import CELLS
from seqjax.errors import InputError, check_least
from seqjax.nn import Attention, Bidirectional, Dense, Embed, Recurrent
from seqjax.scores import SCORES
from seqjax.seq2seq import last_output, pointer_generator, scheduled_inputs
from seqjax.text import SOS, UNK
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, PyTree, Scalar, Size


@dataclass(frozen=True)
class RNNSeq2SeqConfig:
    """Shape of a recurrent encoder-decoder."""

    cell: str = "lstm"
    """Any cell of seqjax.CELLS, such as lstm, gru or elman."""
    d_embed: int = 128
    d_hidden: int = 256
    """Size of the memory, of the decoder and of h̃; each direction of the encoder has half of it."""
    n_layers: int = 1
    """Of the encoder, and of the decoder."""
    bidirectional: bool = True
    attention: str = "additive"
    """A score of seqjax.scores.SCORES, such as additive, dot or general, or none; coverage needs additive."""
    d_attention: int = 256
    """Hidden size of the additive score."""
    longest: int = 64
    """The most tokens of a source for the location score."""
    input_feeding: bool = False
    coverage: bool = False
    copy: bool = False
    """Ids from V on stand for the source's own unknown words; they are read as <unk>."""
    n_extra: int = 0
    """How many of them there may be; logits are log-probabilities of V + n_extra words."""
    bridge: Literal["copy", "dense", "zero"] = "copy"
    """How a layer of the decoder starts: as that of the encoder ended, with an affine map of that, or with zeros."""
    tied: Literal["none", "output", "all"] = "none"
    """U = Eᵀ, without c; with "all", E_source = E too. Needs d_embed = d_hidden."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, cell states, softmax and the loss stay float32."""

    def __post_init__(self):
        for name, known in (("cell", CELLS), ("attention", (*SCORES, "none"))):
            if getattr(self, name) not in known:
                raise InputError(f"model.{name}={getattr(self, name)!r} is unknown; choose from {', '.join(known)}.")
        check_least(self, "model.", d_embed=1, d_hidden=1, n_layers=1, d_attention=1, longest=1)
        if self.bidirectional and self.d_hidden % 2:
            raise InputError(f"model.d_hidden={self.d_hidden}: two directions have half of it each; make it even.")
        if self.coverage and self.attention != "additive":
            raise InputError(f"model.coverage needs model.attention='additive', not {self.attention!r}.")
        if self.copy and self.attention == "none":
            raise InputError("model.copy copies what attention points at; choose a model.attention other than 'none'.")
        if self.n_extra < 0 or (self.n_extra and not self.copy):
            raise InputError(f"model.n_extra={self.n_extra}; it must be at least 0, and 0 without model.copy.")
        if self.tied != "none" and self.d_embed != self.d_hidden:
            raise InputError(f"model.tied needs d_embed = d_hidden, not {self.d_embed} and {self.d_hidden}.")


class Memory(NamedTuple):
    """A source and its mask ``[B, S]``, ``keys [B, S, A]``, ``values [B, S, H]``; without attention only the last."""

    source: Array
    mask: Array
    keys: Array
    values: Array


class State(NamedTuple):
    """Where decoding stands: ``feed [B, H]`` is h̃, ``coverage [B, S]`` sums ``attention [B, S]``, the last weights."""

    carries: tuple
    feed: Array | None
    coverage: Array | None
    attention: Array
    memory: PyTree  # Shared(Memory)


class Reading(NamedTuple):
    """What came of T queries: embedded inputs x, h, context, weights and h̃, the attentional vector, ``[B, T, …]``."""

    x: Array
    h: Array
    context: Array
    weights: Array
    attentional: Array


class RNNSeq2Seq(nnx.Module):
    """Encoder, bridge, decoder with attention, output layer."""

    def __init__(self, config: RNNSeq2SeqConfig, source_vocab: int, target_vocab: int, *, rngs: nnx.Rngs):
        if (config.copy or config.tied == "all") and source_vocab != target_vocab:
            sizes = f"{source_vocab} and {target_vocab}"
            raise InputError(f"model.copy and model.tied='all' need one vocabulary, not two of {sizes} tokens.")
        self.config, cell, h = config, CELLS[config.cell], config.d_hidden
        self.source = None if config.tied == "all" else Embed(source_vocab, config.d_embed, rngs=rngs)
        self.target = Embed(target_vocab, config.d_embed, rngs=rngs)
        encoder = Bidirectional if config.bidirectional else Recurrent
        self.encoder = encoder(cell, config.d_embed, h, config.n_layers, rngs=rngs)
        d_in = config.d_embed + h * config.input_feeding
        self.decoder = Recurrent(cell, d_in, h, config.n_layers, rngs=rngs)
        leaves = jax.tree.leaves(self.decoder.initial(jnp.zeros((1, d_in)))) if config.bridge == "dense" else ()
        self.bridge = nnx.List([Dense(h, h, rngs=rngs) for _ in leaves])
        options = {"d_score": config.d_attention, "longest": config.longest, "coverage": config.coverage}
        self.attention = None if config.attention == "none" else Attention(config.attention, h, h, **options, rngs=rngs)
        self.merge = Dense(2 * h, h, rngs=rngs)
        self.out = Dense(h, target_vocab, outputs="vocab", rngs=rngs) if config.tied == "none" else None
        self.gate = Dense(2 * h + config.d_embed, 1, rngs=rngs) if config.copy else None

    def __call__(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        inputs: Int[Array, "B T"],
        *,
        dropout: Scalar = 0.0,
        sampling: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> tuple[Float[Array, "B T S"], Float[Array, "B T V"]]:
        """``(attention, logits)`` of the tokens that follow each of the inputs; attention is 0 where there is none.

        ``sampling`` is the rate of inputs that the model draws itself (`scheduled_inputs`, without dropout); the Python
        number 0 costs nothing. It and ``dropout``, on embeddings, between layers and on h̃, act only with a ``key``.
        """
        key_encoder, key_inputs, key_rnn, key_drop = (None,) * 4 if key is None else jax.random.split(key, 4)
        state, drop = self._begin(source, source_lengths, dropout, key_encoder), dropper(dropout, key_drop)
        if key_inputs is not None and not (isinstance(sampling, int | float) and sampling == 0):
            inputs = scheduled_inputs(self.step, state, inputs, sampling, key_inputs)
        xs, memory = drop(self._embed(self.target, inputs)), state.memory.value
        if self.config.input_feeding or self.config.coverage:
            reading = self._loop(state, xs, dropout, key_rnn)
        else:
            _, hs = self.decoder(xs, state.carries, dropout=dropout, key=key_rnn)
            reading = self._read(memory, xs, hs, None)
        return reading.weights, self._scores(memory, reading._replace(attentional=drop(reading.attentional)))

    def init_state(self, batch: Size, max_length: int | None = None) -> State:
        """The decoding state of an empty source; the length of what will be written does not matter."""
        return self._begin(jnp.zeros((batch, 1), jnp.int32), jnp.zeros(batch, jnp.int32))

    def prefill(
        self, state: State, source: Int[Array, "B S"], lengths: Int[Array, "B"]
    ) -> tuple[State, Float[Array, "B V"]]:
        """Read sources and <sos>: the state and the scores of the first token; nothing of ``state`` is left."""
        return self.step(self._begin(source, lengths), jnp.full_like(lengths, SOS, jnp.int32))

    def step(self, state: State, tokens: Int[Array, "B"]) -> tuple[State, Float[Array, "B V"]]:
        """Read one token a row: the next state and the scores of the token after it; W rows may share a source."""
        state, reading = self._advance(state, self._embed(self.target, tokens))
        logits = self._scores(state.memory.value, reading)
        return state, logits.reshape(tokens.shape[0], -1)

    def _begin(self, source, lengths, dropout: Scalar = 0.0, key=None) -> State:
        """Encode: the state before <sos>."""
        config = self.config
        key_in, key_rnn = (None, None) if key is None else jax.random.split(key)
        xs = dropper(dropout, key_in)(self._embed(self.source or self.target, source))
        carries, values = self.encoder(xs, lengths=lengths, dropout=dropout, key=key_rnn)
        if config.bridge == "zero":
            carries = jax.tree.map(jnp.zeros_like, carries)
        if config.bridge == "dense":
            leaves, form = jax.tree.flatten(carries)
            carries = jax.tree.unflatten(form, [dense(leaf) for dense, leaf in zip(self.bridge, leaves, strict=True)])
        feed = jnp.zeros_like(values[:, 0]) if config.input_feeding else None
        mask = jnp.arange(source.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
        if self.attention is None:
            keys = values = last_output(values, lengths, bidirectional=config.bidirectional)
        else:
            keys = self.attention.keys(values)
        coverage = jnp.zeros_like(mask, jnp.float32) if config.coverage else None
        weights, memory = jnp.zeros_like(mask, jnp.float32), Shared(Memory(source, mask, keys, values))
        return State(carries, feed, coverage, weights, memory)

    def _read(self, memory: Memory, xs, hs, coverage) -> Reading:
        """Attend, and merge what was found with the queries hs [B, T, H]: T times of a row, or W rows of a source."""
        if self.attention is None:
            contexts = jnp.broadcast_to(memory.values, hs.shape)
            weights = jnp.zeros((*hs.shape[:2], memory.mask.shape[1]), jnp.float32)
        else:
            contexts, weights = self.attention(hs, memory.keys, memory.values, mask=memory.mask, coverage=coverage)
        return Reading(xs, hs, contexts, weights, jnp.tanh(self.merge(_joined(contexts, hs))))

    def _advance(self, state: State, x, dropout: Scalar = 0.0, key=None) -> tuple[State, Reading]:
        """One step of all rows from embeddings x [B, D]; the reading has the rows of a source side by side."""
        memory, coverage = state.memory.value, state.coverage
        carries, h = self.decoder.step(_joined(x, state.feed), state.carries, dropout=dropout, key=key)
        rows = (None if a is None else a.reshape(memory.mask.shape[0], -1, a.shape[-1]) for a in (x, h, coverage))
        reading = self._read(memory, *rows)
        weights = reading.weights.reshape(x.shape[0], -1)
        feed = None if state.feed is None else reading.attentional.reshape(h.shape)
        return State(carries, feed, None if coverage is None else coverage + weights, weights, state.memory), reading

    def _loop(self, state: State, xs, dropout: Scalar, key) -> Reading:
        """The steps of decoding over given embeddings xs [B, T, D]."""

        def body(looped, at):
            t, x = at
            key_t = None if key is None else jax.random.fold_in(key, t)
            after, reading = self._advance(looped._replace(memory=state.memory), x, dropout, key_t)
            return after._replace(memory=None), reading  # carried, the memory would be kept for every step

        times = jnp.arange(xs.shape[1]), jnp.swapaxes(xs, 0, 1)
        _, readings = lax.scan(body, state._replace(memory=None), times)
        return jax.tree.map(lambda a: jnp.swapaxes(a[:, :, 0], 0, 1), readings)

    def _scores(self, memory: Memory, reading: Reading):
        z = self.target.attend(reading.attentional) if self.out is None else self.out(reading.attentional)
        if self.gate is None:
            return z
        gate = self.gate(_joined(reading.context, reading.h, reading.x))[..., 0]
        return pointer_generator(z, gate, reading.weights, memory.source, n_extra=self.config.n_extra)

    def _embed(self, table: Embed, tokens):
        known = jnp.where(tokens < table.w.get_value().shape[0], tokens, UNK)
        return table(known).astype(self.config.dtype)


def _joined(*parts):
    """Side by side, of what there is."""
    return jnp.concatenate([part for part in parts if part is not None], axis=-1)
