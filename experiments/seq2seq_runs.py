"""What the experiments from sequence to sequence share; no experiment itself.

Each of them adds a configuration with the fields ``seed``, ``model``, ``hyper``, ``loop``, ``optimizer``, ``schedule``,
``warmup``, ``batches``, ``search`` and ``report``, its presets, where its texts come from, and how they are measured. A
run directory has, beside what every run has:

    tokenizer.json      the vocabulary of both sides; or source_tokenizer.json and target_tokenizer.json
    corpus/*.jsonl      the texts of each split
    shapes.json         those of the batches
    predictions.txt     what the trained model wrote for the test split, line by line
    attention/*.png     where it looked meanwhile, for the first texts
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments.lm_runs import data_seed, make_optimizer, reading, start, write_bundle
from seqjax import decoding, distributed, export, losses, nn, sharding, train
from seqjax.checkpoint import Checkpoints
from seqjax.config import Run, newest_run, read_config
from seqjax.data import PairBuckets, batches, bucket_shapes, count_cut, evaluation_batches, read_lines
from seqjax.errors import InputError, check_least
from seqjax.models import rnn_seq2seq, transformer_seq2seq
from seqjax.reporting import attention_map
from seqjax.text import EOS, PAD, SOS, UNK, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

MODULES: dict[type, Callable[..., nnx.Module]] = {
    rnn_seq2seq.RNNSeq2SeqConfig: rnn_seq2seq.RNNSeq2Seq,
    transformer_seq2seq.TransformerSeq2SeqConfig: transformer_seq2seq.TransformerSeq2Seq,
}
"""The model of each type of configuration: ``module(config, source_vocab, target_vocab, rngs=…)``."""

ModelConfig = rnn_seq2seq.RNNSeq2SeqConfig | transformer_seq2seq.TransformerSeq2SeqConfig


class Example(NamedTuple):
    """A source, and the texts that may come of it; the first is what is learned, unless a task says otherwise."""

    source: str
    targets: tuple[str, ...]


Corpus = Mapping[str, Sequence[Example]]
Measure = Callable[[list[str], list[list[str]]], dict[str, float]]
"""``(hypotheses, references) -> metrics`` of a task; the references of each hypothesis are a list."""


# --- configuration


@dataclass(frozen=True)
class Batching:
    """How pairs become batches."""

    tokens: int = 2048
    """The most tokens of either side of a batch, padding included."""
    n_buckets: int = 4
    """Shapes of batches, each compiled once."""
    max_source: int = 100
    """Tokens of the longest source, <eos> included; longer ones are cut."""
    max_target: int = 100

    def __post_init__(self):
        check_least(self, tokens=1, n_buckets=1, max_source=2, max_target=2)


@dataclass(frozen=True)
class Search:
    """How texts are written."""

    beam_size: int = 5
    """1 always takes the likeliest token."""
    length_penalty: Literal["none", "average", "wu"] = "average"
    alpha: float = 1.0
    """Exponent of the length penalty; more favours longer texts."""
    coverage_penalty: float = 0.0
    """Weight of Wu et al.'s penalty for parts of the source that were not looked at."""
    no_repeat_ngram: int = 0
    """No n-gram of so many tokens twice; 0 allows all."""
    repetition_penalty: float | None = None
    """Above 1, written tokens become less likely."""
    min_length: int = 0
    """The fewest tokens."""
    max_length: int | None = None
    """The most tokens; by default twice those of the longest source of the batch's bucket and ten more, up to
    batches.max_target."""
    temperature: float | None = None
    """Draw the texts at this temperature instead of searching for the likeliest."""
    seed: int = 0
    """Of the drawing."""
    batch_size: int = 64
    """Sources at a time."""

    def __post_init__(self):
        check_least(self, beam_size=1, batch_size=1, seed=0, min_length=0, no_repeat_ngram=0)
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length={self.max_length}; it must be at least 1.")
        # Now, not when the first text is written, after hours of training.
        if not self.coverage_penalty >= 0:
            raise InputError(f"coverage_penalty={self.coverage_penalty}; it must be at least 0.")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise InputError(
                f"repetition_penalty={self.repetition_penalty}; it must be above 0 (above 1 avoids repetition)."
            )
        decoding.check_options(temperature=self.temperature)


def check(config: Any) -> None:
    """Raise `InputError` for a configuration whose parts do not fit."""
    check_least(config, seed=0, data_seed=0, warmup=0)
    train.check_unused(config.hyper, "embed_lr", "layer_lr")
    model, limits = config.model, config.batches
    if getattr(model, "attention", "") == "none" and config.search.coverage_penalty > 0:
        raise InputError("search.coverage_penalty needs a model with attention.")
    if isinstance(model, rnn_seq2seq.RNNSeq2SeqConfig):
        if model.attention == "location" and limits.max_source > model.longest:
            raise InputError(
                f"batches.max_source={limits.max_source}; this model has location scores for {model.longest} tokens "
                "(model.longest)."
            )
        return
    if config.hyper.scheduled_sampling > 0:
        raise InputError(
            f"hyper.scheduled_sampling={config.hyper.scheduled_sampling}: only recurrent models have it; leave it 0."
        )
    longest = max(limits.max_source, limits.max_target, config.search.max_length or 0)
    if model.longest is not None and longest > model.longest:
        raise InputError(
            f"batches.max_source, batches.max_target and search.max_length reach {longest}; this model has learned "
            f"positions for {model.longest} tokens (model.context)."
        )


# --- texts


class Texts(NamedTuple):
    """From texts to ids and back. With ``n_extra``, a source's own unknown words have ids from V on."""

    source: Tokenizer
    target: Tokenizer
    n_extra: int = 0
    max_source: int | None = None  # tokens that are read of a source, <eos> included: no other can be copied

    def encode(self, example: Example, *, which: int = 0, dropout=None) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the source, and of one of its targets."""
        target = example.targets[which] if example.targets else ""
        if self.n_extra:
            source, known = self._extended(example.source, {})
            return source, self._extended(target, known, grow=False)[0]
        options = {} if dropout is None else {"dropout": dropout[0], "rng": dropout[1]}
        return self.source.encode(example.source, **options), self.target.encode(target, **options)

    def decode(self, ids: np.ndarray, source: str) -> str:
        """The text of ids that were written for a source."""
        if not self.n_extra:
            return self.target.decode(ids)
        written = [i for i in ids.tolist() if i not in (PAD, SOS, EOS)]
        return " ".join(self.spelled(self.target, written, source))

    def spelled(self, tokenizer: Tokenizer, ids: Sequence[int], source: str) -> list[str]:
        """Each id as it is shown in a picture, where ``source`` was read."""
        own = list(self._extended(source, {})[1]) if self.n_extra else []
        own = dict(enumerate(own, start=tokenizer.vocab_size))
        return [_shown(tokenizer, i) if i < tokenizer.vocab_size else own.get(i, tokenizer.vocab[UNK]) for i in ids]

    def read(self, source: str) -> list[str]:
        """A source as its tokens, for pictures."""
        ids, _ = self.encode(Example(source, ()))
        return self.spelled(self.source, [*ids.tolist(), EOS], source)

    def _extended(self, text: str, known: dict[str, int], *, grow: bool = True):
        """Ids of words between spaces; unknown ones get the next of the n_extra ids, or that in ``known``."""
        words = text.split()
        ids = self.source.encode(" ".join(words))
        n_read = len(words) if self.max_source is None else self.max_source - 1
        for i, word in enumerate(words):
            if ids[i] == UNK and (word in known or (grow and i < n_read and len(known) < self.n_extra)):
                ids[i] = known.setdefault(word, self.source.vocab_size + len(known))
        return ids, known


def _shown(tokenizer: Tokenizer, i: int) -> str:
    """A token as it is shown, a space as a dot; of bpe as its bytes where they are no characters."""
    text = tokenizer.decode([i]) if tokenizer.kind == "bpe" else ""
    return (tokenizer.vocab[i] if text in ("", "\ufffd") else text).replace(" ", "·")


def prepare(
    directory: Path,
    corpus: Callable[[], Corpus],
    *,
    kinds: tuple[str, str],
    joint: bool = False,
    min_count: int = 1,
    max_size: int | None = None,
    n_extra: int = 0,
    max_source: int | None = None,
) -> tuple[Texts, Corpus]:
    """Tokenizers and texts, made once, then read from the run."""
    folder = directory / "corpus"

    def make():
        if any((directory / name).exists() for name in ("tokenizer.json", "target_tokenizer.json")):
            return
        splits = corpus()
        if empty := [split for split, examples in splits.items() if not examples]:
            raise InputError(f"the corpus has no pair for {' and '.join(empty)}; give files that are not empty.")
        folder.mkdir(exist_ok=True)
        for split, examples in splits.items():
            lines = (json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in examples)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        sources = [example.source for example in splits["train"]]
        targets = [text for example in splits["train"] for text in example.targets]
        learn = partial(train_tokenizer, min_count=min_count, max_size=max_size)
        if joint:
            save_tokenizer(learn(kinds[0], sources + targets), directory / "tokenizer.json")
        else:
            save_tokenizer(learn(kinds[0], sources), directory / "source_tokenizer.json")
            save_tokenizer(learn(kinds[1], targets), directory / "target_tokenizer.json")  # last: all else is there

    distributed.on_first(make)
    return load_texts(directory, n_extra, max_source), load_corpus(directory)


def load_texts(directory: Path, n_extra: int = 0, max_source: int | None = None) -> Texts:
    """The tokenizers of a run."""
    if (directory / "tokenizer.json").exists():
        tokenizer = load_tokenizer(directory / "tokenizer.json")
        return Texts(tokenizer, tokenizer, n_extra, max_source)
    sides = (load_tokenizer(directory / f"{side}_tokenizer.json") for side in ("source", "target"))
    return Texts(*sides, n_extra, max_source)


def load_corpus(directory: Path) -> dict[str, list[Example]]:
    """split -> its examples, from a run."""

    def examples(file: Path) -> list[Example]:
        records = map(json.loads, read_lines(file))
        return [Example(record["source"], tuple(record["targets"])) for record in records]

    return {file.stem: examples(file) for file in sorted((directory / "corpus").glob("*.jsonl"))}


# --- model


class Model(NamedTuple):
    """The pure functions of an encoder-decoder."""

    init: Callable  # key -> params
    apply: Callable  # (params, source, lengths, inputs, dropout=, key=) -> (attention, logits), other methods by name
    read: Callable  # (params, source, lengths, max_length=) -> (state, logits), compiled for each shape
    step: Callable  # (params, state, tokens) -> (state, logits): for decoding
    axes: Callable  # () -> what the axes of each parameter mean, see `nn.logical_axes`


def build(config: Any, texts: Texts) -> Model:
    """The model of a configuration as pure functions."""
    module = MODULES[type(config)]
    sizes = texts.source.vocab_size, texts.target.vocab_size

    def make(key):
        return module(config, *sizes, rngs=nnx.Rngs(key))

    init, apply = nn.purify(make)

    @partial(jax.jit, static_argnames="max_length")
    def read(params, source, lengths, max_length):
        state = apply(params, source.shape[0], max_length, method="init_state")
        return apply(params, state, source, lengths, method="prefill")

    return Model(init, apply, read, partial(apply, method="step"), partial(nn.logical_axes, make))


def make_loss(config: Any, model: Model) -> Callable:
    """Cross-entropy of the next token; what the loss carries is a digest of the vocabulary, for `load` to compare."""

    def loss_fn(params, extra, batch, key, hyper):
        # Rates of 0 that are not traced draw no random numbers.
        options = {"dropout": hyper.dropout if config.hyper.dropout > 0 else 0.0, "key": key}
        if config.hyper.scheduled_sampling > 0:
            options["sampling"] = hyper.scheduled_sampling
        attention, logits = model.apply(params, batch.source, batch.source_lengths, batch.inputs, **options)
        loss, weight = losses.cross_entropy(
            logits, batch.targets, where=batch.where, label_smoothing=hyper.label_smoothing
        )
        if getattr(config, "coverage_loss", 0) > 0:
            loss += config.coverage_loss * losses.coverage(attention, where=batch.where)[0]
        return (loss, weight), (extra, {})

    return loss_fn


def digest(texts: Texts) -> np.ndarray:
    """A number for the vocabularies."""
    content = json.dumps([tokenizer.to_json() for tokenizer in (texts.source, texts.target)])
    return np.array([zlib.crc32(content.encode("utf-8", "surrogatepass"))], np.uint32)


def initial(config: Any, model: Model, texts: Texts, key: jax.Array) -> train.State:
    """The state before the first step."""
    key_init, key_train = jax.random.split(key)
    optimizer = make_optimizer(config)
    return train.init_state(model.init(key_init), jnp.asarray(digest(texts)), key_train, optimizer(config.hyper))


def shapes_of(config: Any, model: Model, texts: Texts) -> train.State:
    """The shapes of a run's state, to restore its checkpoints."""
    return jax.eval_shape(partial(initial, config, model, texts), jax.random.key(0))


@partial(jax.jit, static_argnames="apply")
def _evaluate_batch(apply, params, carried, batch):
    _, logits = apply(params, batch.source, batch.source_lengths, batch.inputs)
    loss = losses.cross_entropy(logits, batch.targets, where=batch.where)
    correct = jnp.sum((jnp.argmax(logits, -1) == batch.targets) & batch.where).astype(jnp.float32)
    return carried, {"loss": loss, "accuracy": (correct, loss[1])}


def teacher_forced(model: Model, pairs: Sequence, shapes: Sequence) -> train.Evaluation:
    """Loss (nats a token), perplexity and accuracy of the next token, each with the right tokens before it."""
    return train.Evaluation(
        init=lambda params: (),
        step=partial(_evaluate_batch, model.apply),
        batches=lambda: (batch for _, batch in evaluation_batches(pairs, shapes)),
        finish=lambda values: values | {"perplexity": float(losses.perplexity(values["loss"]))},
    )


# --- writing


class Hypothesis(NamedTuple):
    """A text that was written; with alignments also its tokens, as they are shown, and its attention [T, S]."""

    text: str
    score: float
    log_prob: float
    tokens: list[str]
    attention: np.ndarray | None


def training_shapes(batches: Batching, pairs: Sequence) -> tuple:
    """The shapes of batches that pad these pairs the least."""
    limits = batches.max_source, batches.max_target
    return bucket_shapes(pairs, tokens_per_batch=batches.tokens, n_buckets=batches.n_buckets, max_lengths=limits)


def reach(batches: Batching, shapes: tuple) -> tuple:
    """The shapes, and another one for texts that are longer than any in training."""
    limits = batches.max_source, batches.max_target
    longest = shapes if limits == shapes[-1][1:] else (*shapes, (max(1, batches.tokens // max(limits)), *limits))
    return tuple(longest)


class Writer(NamedTuple):
    """A trained model with all it needs to turn texts into texts."""

    model: Model
    params: Any
    texts: Texts
    shapes: tuple  # of batches: the lengths that programs are compiled for

    def write(
        self,
        sources: Sequence[str],
        search: Search,
        *,
        n_best: int = 1,
        alignments: bool = False,
        quiet: bool = False,
    ) -> list[list[Hypothesis]]:
        """For each source its ``n_best`` texts, best first; for an empty one the empty text.

        Unless ``quiet``, warn of sources that are cut, and tell on a terminal how many texts are written.
        """
        written = [[Hypothesis("", 0.0, 0.0, [], None)] * n_best for _ in sources]
        asked = [i for i, source in enumerate(sources) if source.strip()]
        if not asked:
            return written
        pairs = [(self.texts.encode(Example(sources[i], ()))[0], ()) for i in asked]
        rows = min(search.batch_size, 1 << (len(asked) - 1).bit_length())
        shapes = [(rows, n_source, 1) for _, n_source, _ in self.shapes]
        if not quiet and (cut := count_cut(pairs, shapes)[0]):
            limit = shapes[-1][1]
            print(
                f"warning: {cut} of {len(sources)} sources are longer than {limit} tokens and were cut", file=sys.stderr
            )
        done = 0
        for number, (index, batch) in enumerate(evaluation_batches(pairs, shapes)):
            beams = self._search(batch, number, search, n_best, alignments)
            places = index[index >= 0].tolist()  # the first rows
            for row, place in enumerate(places):
                written[asked[place]] = self._read_out(beams, row, sources[asked[place]])
            done += len(places)
            if not quiet and len(asked) > rows and sys.stderr.isatty():
                end = "\n" if done == len(asked) else ""
                print(f"\r{done:,} of {len(asked):,} texts written", end=end, file=sys.stderr, flush=True)
        return written

    def _search(self, batch, number: int, search: Search, n_best: int, alignments: bool):
        n_source = batch.source.shape[1]
        length = search.max_length or min(2 * n_source + 10, self.shapes[-1][2])
        state, logits = self.model.read(self.params, batch.source, batch.source_lengths, max_length=length)
        constraints = decoding.Constraints(
            allowed=_may_be_written(logits.shape[-1]),
            min_length=search.min_length or None,
            no_repeat_ngram=search.no_repeat_ngram,
            repetition_penalty=search.repetition_penalty,
        )
        arguments = self.model.step, self.params, state, logits
        common = {"max_length": length, "eos": EOS, "constraints": constraints}
        if search.temperature is not None:
            key = jax.random.fold_in(jax.random.key(search.seed), number)
            keys = [jax.random.fold_in(key, n) for n in range(n_best)]
            draw = partial(decoding.sample, *arguments, temperature=search.temperature, **common)
            return _as_beams(sharding.fetch([draw(key) for key in keys]))
        if max(search.beam_size, n_best) == 1 and not alignments:
            return _as_beams([sharding.fetch(decoding.greedy(*arguments, **common))])
        beams = decoding.beam_search(
            *arguments,
            beam_size=max(search.beam_size, n_best),
            n_best=n_best,
            length_penalty=search.length_penalty,
            alpha=search.alpha,
            coverage_penalty=search.coverage_penalty,
            attention=_attention,
            alignments=alignments,
            stop="first" if max(search.beam_size, n_best) == 1 else "exact",
            **common,
        )
        return sharding.fetch(beams)

    def _read_out(self, beams: decoding.Beams, row: int, source: str) -> list[Hypothesis]:
        found = []
        for n, length in enumerate(beams.lengths[row].tolist()):
            ids, tokens, attention = beams.tokens[row, n, :length], [], None
            if beams.attention is not None:
                tokens = self.texts.spelled(self.texts.target, ids.tolist(), source)
                attention = beams.attention[row, n, :length]
            score, log_prob = float(beams.scores[row, n]), float(beams.log_probs[row, n])
            found.append(Hypothesis(self.texts.decode(ids, source), score, log_prob, tokens, attention))
        return found


def _as_beams(samples: Sequence[decoding.Samples]) -> decoding.Beams:
    """Several texts of each row, best first, as if by beam search."""
    tokens, scores, lengths = (np.stack(arrays, axis=1) for arrays in zip(*samples, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, lengths = (np.take_along_axis(a, order, axis=1) for a in (scores, lengths))
    return decoding.Beams(np.take_along_axis(tokens, order[:, :, None], axis=1), scores, lengths, scores, None)


def _attention(state):
    return state.attention


def _may_be_written(vocab_size: int) -> np.ndarray:
    """Everything but what no text has."""
    return ~np.isin(np.arange(vocab_size), (PAD, SOS, UNK))


# --- training


class Task(NamedTuple):
    """What an experiment adds: its name, how texts are measured, and what a user gives and gets."""

    name: str
    config_type: type
    measure: Measure
    clean: Callable[[Any, str], str] = lambda config, line: line.strip()
    """``(config, line) -> source``: what is done to a line before it is read, as in training."""
    every_target: bool = False
    """Learn all targets of an example, not the first alone."""


def training_pairs(task: Task, corpus: Corpus) -> list[tuple[Example, int]]:
    """What is learned: examples, each with the number of its target."""
    return [(e, i) for e in corpus["train"] for i in range(len(e.targets) if task.every_target else 1)]


def training_buckets(config: Any, task: Task, texts: Texts, corpus: Corpus, mesh: Mesh | None = None) -> PairBuckets:
    """The batches of training; on a mesh, with those rows that are read here."""
    if getattr(config.model, "n_extra", 0) != texts.n_extra:
        raise InputError(
            f"model.n_extra={config.model.n_extra}: here a source's own words have no ids of their own; leave it 0."
        )
    learned, seed = training_pairs(task, corpus), data_seed(config)
    rate = getattr(config.data, "bpe_dropout", 0.0)

    def encode(epoch: int):
        dropout = (rate, np.random.default_rng([seed, epoch])) if rate else None
        return [texts.encode(example, which=i, dropout=dropout) for example, i in learned]

    pairs = encode(0)
    shapes, multiple = training_shapes(config.batches, pairs), 1 if mesh is None else mesh.shape.get("data", 1)
    options = {"encode": encode if rate else None, "multiple": multiple, **reading(mesh)}
    return PairBuckets(pairs, shapes, seed=seed, **options)


def setup(config: Any, task: Task, directory: Path, texts: Texts, corpus: Corpus) -> train.Setup:
    """What trains a model and measures it with teacher forcing."""
    buckets = training_buckets(config, task, texts, corpus)
    save_shapes(directory, reach(config.batches, buckets.shapes))
    return _setup(config, build(config.model, texts), texts, buckets, corpus)


def save_shapes(directory: Path, shapes: tuple) -> None:
    """Write shapes.json of a run."""
    if jax.process_index() == 0:
        (directory / "shapes.json").write_text(json.dumps(shapes) + "\n")


def _setup(config: Any, model: Model, texts: Texts, buckets: PairBuckets, corpus: Corpus) -> train.Setup:
    validation = [texts.encode(example) for example in corpus["validation"]]
    return train.Setup(
        init=partial(initial, config, model, texts),
        train_step=train.make_step(make_loss(config, model), make_optimizer(config)),
        batches=lambda start, stop: batches(buckets, start=start, stop=stop),
        evaluation=teacher_forced(model, validation, reach(config.batches, buckets.shapes)),
    )


def fit(config: Any, run: Run, task: Task, texts: Texts, corpus: Corpus) -> tuple[Writer, dict[str, float]]:
    """Train, then measure: the trained model, and its metrics on each split but the training one."""
    model, buckets = build(config.model, texts), training_buckets(config, task, texts, corpus, run.mesh)
    parts = _setup(config, model, texts, buckets, corpus)
    state = start(parts.init, config, run.mesh, model.axes)
    if run.resume:
        check_vocabulary(run.directory, state, digest(texts))
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {len(training_pairs(task, corpus)):,} pairs, {buckets.steps_per_epoch:,} batches an "
        f"epoch of shapes {buckets.shapes}, vocabularies of {texts.source.vocab_size:,} and "
        f"{texts.target.vocab_size:,}, {n_weights:,} weights, on {jax.default_backend()}"
    )
    if buckets.cut_sources or buckets.cut_targets:
        limits = config.batches.max_source, config.batches.max_target
        print(
            f"warning: {buckets.cut_sources} sources and {buckets.cut_targets} targets are longer than {limits} tokens "
            "and were cut",
            file=sys.stderr,
        )
    shapes = reach(config.batches, buckets.shapes)
    save_shapes(run.directory, shapes)
    validation = corpus["validation"]
    judged = validation[:: -(-len(validation) // config.report.texts)]  # from all over: it may be in some order

    with_teacher = train.make_evaluate(parts.evaluation, run.mesh)

    def evaluate(params):
        greedy = Search(beam_size=1, batch_size=config.search.batch_size)
        written = measure(task, Writer(model, params, texts, shapes), judged, greedy, quiet=True)
        return with_teacher(params) | written

    times = 1 if run.mesh is None else sharding.shares(run.mesh)
    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=evaluate,
        tokens_per_step=lambda batch: round(times * batch.where.sum()),
        place=run.mesh and sharding.place(run.mesh),
        resume=run.resume,
    )
    params = train.best_params(run.directory, state)
    writer, values = Writer(model, params, texts, shapes), {}
    for split in sorted(set(corpus) - {"train"}, reverse=True):  # validation, then the others
        pairs = [texts.encode(example) for example in corpus[split]]
        found = train.make_evaluate(teacher_forced(model, pairs, shapes), run.mesh)(params)
        found |= measure(task, writer, corpus[split], config.search, run.directory if split == "test" else None)
        print(f"{split}:", "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
        values |= {f"{name}_{split}": value for name, value in found.items()}
    train.summarise(run.directory, values)
    return writer, values


def measure(
    task: Task,
    writer: Writer,
    examples: Sequence[Example],
    search: Search,
    directory: Path | None = None,
    *,
    quiet: bool = False,
) -> dict[str, float]:
    """The task's metrics of what is written for the examples, which goes to predictions.txt in ``directory``."""
    written = writer.write([example.source for example in examples], search, quiet=quiet)
    hypotheses = [found[0].text for found in written]
    if directory is not None and jax.process_index() == 0:
        (directory / "predictions.txt").write_text("".join(f"{_line(text)}\n" for text in hypotheses), encoding="utf-8")
    return task.measure(hypotheses, [list(example.targets) for example in examples])


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def draw_attention(best: Hypothesis, tokens: list[str], path: Path) -> None:
    """A picture of the attention to the tokens of a source, where the model has one."""
    if best.attention is not None and np.any(best.attention) and jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        read = min(len(tokens), best.attention.shape[1])
        tokens = [*tokens[: read - 1], tokens[-1]]  # what was cut ends with <eos> too
        attention_map(best.attention[:, :read], tokens, best.tokens, path)


@dataclass(frozen=True)
class Report:
    """What a run shows of itself."""

    texts: int = 500
    """Texts of the validation split that are written, greedily, at each evaluation."""
    maps: int = 4
    """Pictures of attention."""
    samples: int = 5
    """Texts on the screen at the end."""

    def __post_init__(self):
        check_least(self, "report.", texts=1, maps=0, samples=0)


def show(writer: Writer, examples: Sequence[Example], config: Any, directory: Path) -> None:
    """Print what is written for the first examples, and draw where the model looked into ``directory``."""
    report = config.report
    examples = examples[: max(report.maps, report.samples)]
    written = writer.write([example.source for example in examples], config.search, alignments=True, quiet=True)
    for number, (example, (best, *_)) in enumerate(zip(examples, written, strict=True)):
        if number < report.maps:
            draw_attention(best, writer.texts.read(example.source), directory / "attention" / f"{number}.png")
        if number < report.samples:
            rows = {"source": example.source, "reference": example.targets[0], "written": best.text}
            print("", *(f"  {name:10} {_line(text)}" for name, text in rows.items()), sep="\n")


def check_vocabulary(directory: Path, template: train.State, digest: np.ndarray) -> bool:
    """Whether a run has a checkpoint; raise `InputError` if it is one of other vocabularies, or of another model."""
    with Checkpoints(directory / "checkpoints") as checkpoints:
        try:
            restored = checkpoints.restore(template)
        except InputError as error:
            raise InputError(
                f"{directory}: config.json and the tokenizer files are not those that the checkpoint was trained with; "
                f"put its own back ({error})."
            ) from error
    if restored is not None and not np.array_equal(restored.tree.extra, digest):
        raise InputError(
            f"{directory}: the vocabulary is not the one that the checkpoint was trained with; put its own tokenizer "
            "files back."
        )
    return restored is not None


def load(directory: Path, config_type: type, *, average: int = 1) -> tuple[Any, Writer]:
    """The configuration and the trained model of a run; ``average`` > 1 takes the mean of so many checkpoints."""
    config = read_config(directory, config_type)
    texts = load_texts(directory, getattr(config.model, "n_extra", 0), config.batches.max_source)
    model = build(config.model, texts)
    template = shapes_of(config, model, texts)
    try:
        shapes = json.loads((directory / "shapes.json").read_text())
    except FileNotFoundError:
        shapes = None
    if shapes is None or not check_vocabulary(directory, template, digest(texts)):
        raise InputError(f"{directory} holds no checkpoint yet; train it further with --run {directory} --resume")
    if average > 1:
        with Checkpoints(directory / "checkpoints") as checkpoints:
            params = train.average_checkpoints(checkpoints, template, average)
    else:
        params = train.best_params(directory, template)
    return config, Writer(model, params, texts, tuple(map(tuple, shapes)))


# --- sub-commands


@dataclass(frozen=True)
class Overrides:
    """How texts are written; what is left out is as in the run."""

    beam_size: int | None = None
    """1 always takes the likeliest token."""
    length_penalty: Literal["none", "average", "wu"] | None = None
    alpha: float | None = None
    """Exponent of the length penalty; more favours longer texts."""
    coverage_penalty: float | None = None
    """Weight of Wu et al.'s penalty for parts of the source that were not looked at."""
    no_repeat_ngram: int | None = None
    """No n-gram of so many tokens twice; 0 allows all."""
    repetition_penalty: float | None = None
    """Above 1, written tokens become less likely."""
    min_length: int | None = None
    """The fewest tokens."""
    max_length: int | None = None
    """The most tokens."""
    temperature: float | None = None
    """Draw the texts at this temperature instead of searching for the likeliest."""
    seed: int | None = None
    """Of the drawing."""
    batch_size: int | None = None
    """Sources at a time."""

    def applied(self, search: Search) -> Search:
        """What is given here, else what ``search`` has."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        # A run that draws its texts can still be searched.
        search = replace(search, temperature=None) if self.beam_size is not None else search
        return replace(search, **given)

    def __post_init__(self):
        self.applied(Search())  # refuses what is out of range before a model is loaded


def _check_counts(options: Any) -> None:
    for name in ("n_best", "average"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"{name}={getattr(options, name)}; it must be at least 1.")


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["train", "validation", "test"] = "test"
    average: int = 1
    """Take the mean of the weights of so many checkpoints."""
    search: Overrides = Overrides()

    def __post_init__(self):
        _check_counts(self)


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    input: Path | None = None
    """A UTF-8 file with a source in each line, .gz too; without one, the standard input."""
    output: Path | None = None
    """Where the texts go, line by line; without one, the standard output."""
    n_best: int = 1
    """Texts for each line, best first; the beam is at least as wide."""
    scores: bool = False
    """Print score and log-probability before each text, between tabs; the score of greedy search and of draws is the
    log-probability."""
    average: int = 1
    """Take the mean of the weights of so many checkpoints."""
    search: Overrides = Overrides()

    def __post_init__(self):
        _check_counts(self)
        if self.output is not None and (self.output.is_dir() or not self.output.parent.is_dir()):
            raise InputError(f"output={self.output}: no file can be written there; name one in a folder that exists.")


@dataclass(frozen=True)
class InteractiveOptions:
    """Options of ``interactive``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    n_best: int = 1
    """Texts for each line, best first; the beam is at least as wide."""
    maps: Path | None = None
    """A folder for pictures of the attention."""
    search: Overrides = Overrides()

    def __post_init__(self):
        _check_counts(self)


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    to: Path | None = None
    """A directory to write, or a file that ends with .zip; without one, bundle in the run directory."""
    max_length: int | None = None
    """The tokens that decoding has room for; by default as many as the run would write at most."""

    def __post_init__(self):
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length={self.max_length}; it must be at least 1.")


def functions(config: Any, model: Model, params: Any, max_length: int | None = None) -> dict[str, export.Function]:
    """What a bundle has of a model."""
    max_length = max_length or config.search.max_length or config.batches.max_target
    longest = config.model.longest
    if isinstance(config.model, transformer_seq2seq.TransformerSeq2SeqConfig):
        if longest is not None and max_length > longest:
            raise InputError(f"max_length={max_length}; this model has learned positions for {longest} tokens.")
        limits = {"max_source": longest, "max_target": longest}
    else:
        limits = {"max_source": longest if config.model.attention == "location" else None}
    return export.encoder_decoder(model.apply, params, max_length=max_length, **limits)


def commands(task: Task) -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The sub-commands ``evaluate``, ``predict``, ``interactive`` and ``export``, for `run_experiment`."""

    def opened(options, **arguments) -> tuple[Path, Any, Writer, Search]:
        directory = options.run or newest_run(task.name)
        config, writer = load(directory, task.config_type, **arguments)
        config = replace(config, search=options.search.applied(config.search))  # checks itself
        return directory, config, writer, config.search

    def evaluate(options: EvaluateOptions) -> None:
        """Print loss and the task's metrics of a run on one split."""
        directory, _, writer, search = opened(options, average=options.average)
        corpus = load_corpus(directory)
        if options.split not in corpus:
            raise InputError(f"split={options.split!r}: this corpus has {', '.join(corpus)}.")
        examples = corpus[options.split]
        pairs = [writer.texts.encode(example) for example in examples]
        values = train.make_evaluate(teacher_forced(writer.model, pairs, writer.shapes))(writer.params)
        values |= measure(task, writer, examples, search)
        print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def predict(options: PredictOptions) -> None:
        """Write a text for each line of a file, or of the standard input."""
        lines = read_lines(options.input) if options.input else _standard_input()
        _, config, writer, search = opened(options, average=options.average)
        sources = [task.clean(config, line) for line in lines]
        text = "".join(
            _formatted(found, options.scores) for found in writer.write(sources, search, n_best=options.n_best)
        )
        if options.output is None:
            print(text, end="")
        else:
            options.output.write_text(text, encoding="utf-8")

    def interactive(options: InteractiveOptions) -> None:
        """Read lines from the terminal and write a text for each; an empty line ends."""
        _, config, writer, search = opened(options)
        if options.maps is not None and search.temperature is not None:
            raise InputError(
                "maps: there are none of texts that are drawn; leave out the temperature, or give a beam_size."
            )
        for number, line in enumerate(_typed()):
            source = task.clean(config, line)
            found = writer.write([source], search, n_best=options.n_best, alignments=True)[0]
            print(_formatted(found, options.n_best > 1), end="", flush=True)
            if options.maps is not None:
                draw_attention(found[0], writer.texts.read(source), options.maps / f"{number}.png")

    def export_run(options: ExportOptions) -> None:
        """Write a run as files that load and run without seqjax's models: programs, weights, tokenizers."""
        directory = options.run or newest_run(task.name)
        config, writer = load(directory, task.config_type)
        found = functions(config, writer.model, writer.params, options.max_length)
        write_bundle(task.name, directory, options.to, found, writer.params, kind="encoder-decoder")

    return {
        "evaluate": (EvaluateOptions, evaluate),
        "predict": (PredictOptions, predict),
        "interactive": (InteractiveOptions, interactive),
        "export": (ExportOptions, export_run),
    }


def _formatted(found: Sequence[Hypothesis], scores: bool) -> str:
    """One line a text: an empty source keeps its line too."""
    return "".join((f"{h.score:.4f}\t{h.log_prob:.4f}\t" if scores else "") + _line(h.text) + "\n" for h in found)


def _standard_input() -> list[str]:
    r"""Its lines, which end with ``\n`` or ``\r\n`` and nothing else, as those of a file."""
    try:
        lines = sys.stdin.buffer.read().decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start} is not valid UTF-8; convert it to UTF-8.") from error
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _typed() -> Iterable[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line
