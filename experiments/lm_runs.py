"""What the experiments with language models share; no experiment itself.

Each of them adds a configuration with the fields ``seed``, ``model``, ``hyper``, ``loop``, ``optimizer``, ``schedule``,
``warmup``, ``batch_size``, ``window`` and ``accumulate``, its presets, and where its text comes from. Its run directory
has, beside what every run has:

    tokenizer.json   the vocabulary
    tokens/*.npy     the tokens of each split, memory-mapped
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from seqjax import decoding, distributed, export, losses, nn, sharding, train
from seqjax.config import Run, newest_run, read_config
from seqjax.data import BPTTWindows, batches, evaluation_windows, tokens
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.models import fixed_window_lm, masked_lm, rnn_lm, transformer_lm
from seqjax.text import EOS, SPECIALS, UNK, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

MODULES: dict[type, Callable[..., nnx.Module]] = {
    rnn_lm.Config: rnn_lm.RNNLM,
    fixed_window_lm.Config: fixed_window_lm.FixedWindowLM,
    transformer_lm.TransformerConfig: transformer_lm.TransformerLM,
}
"""The model of each type of configuration: ``module(config, vocab_size, rngs=…)``, with the methods `Model` needs."""

TRUNKS: dict[type, Callable[..., nnx.Module]] = {**MODULES, masked_lm.MaskedLMConfig: masked_lm.MaskedLM}
"""What others can be started from, by ``hidden(tokens, lengths, dropout=, key=)``; a masked model does not write."""

Corpus = Mapping[str, Iterable[tuple[str, bool]]]


class Model(NamedTuple):
    """The pure functions of a language model."""

    init: Callable  # key -> params
    apply: Callable  # (params, tokens, carry, resets=, dropout=, key=) -> (carry, logits), and other methods by name
    prefill: Callable  # (params, state, prompts, lengths) -> (state, logits), compiled for each shape of the prompts
    step: Callable  # (params, state, tokens) -> (state, logits): for decoding
    longest: int | None  # tokens of the longest text; None is any
    axes: Callable  # () -> what the axes of each parameter mean, see `nn.logical_axes`


@cache  # the same functions each time, so that what is compiled for them is found again
def build(model_config: Any, vocab_size: int) -> Model:
    """The model of a configuration as pure functions."""
    module = TRUNKS[type(model_config)]

    def make(key):
        return module(model_config, vocab_size, rngs=nnx.Rngs(key))

    init, apply = nn.purify(make)
    prefill, step = jax.jit(partial(apply, method="prefill")), partial(apply, method="step")
    longest = getattr(model_config, "longest", None)
    return Model(init, apply, prefill, step, longest, partial(nn.logical_axes, make))


def check_sizes(config: Any) -> None:
    """Raise `InputError` for a size out of range."""
    longest = getattr(config.model, "longest", None)
    if longest is not None and config.window > longest:
        raise InputError(
            f"window={config.window}; this model has learned positions for {longest} tokens (model.context)."
        )
    check_seeds(config)
    check_least(config, batch_size=1, window=1, accumulate=1, warmup=0)
    train.check_unused(config.hyper, "scheduled_sampling", "embed_lr", "layer_lr")


def prepare(
    directory: Path, corpus: Callable[[], Corpus], kind: str, *, min_count: int, max_size: int | None = None
) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the tokens of each split, made from the corpus once, then read from the run."""
    path, folder = directory / "tokenizer.json", directory / "tokens"

    def make():
        if path.exists():
            return
        splits = corpus()
        texts = (piece for piece, _ in splits["train"])
        tokenizer = train_tokenizer(kind, texts, min_count=min_count, max_size=max_size)
        if tokenizer.vocab_size == len(SPECIALS):
            raise InputError(f"data.min_count={min_count} leaves the vocabulary empty; lower it.")
        folder.mkdir(exist_ok=True)
        for split, pieces in splits.items():
            tokens(pieces, tokenizer, folder / f"{split}.npy")
        save_tokenizer(tokenizer, path)  # last: where it is, all else is

    distributed.on_first(make)
    return load_tokenizer(path), read_tokens(directory)


def files_of(directory: Path, pattern: str) -> list[Path]:
    """The files of a run's data, which somebody may have left behind."""
    if not (files := sorted(directory.glob(pattern))):
        raise InputError(f"{directory} has no {pattern} any more; copy the whole run.")
    return files


def read_tokens(directory: Path) -> dict[str, np.ndarray]:
    """split -> its tokens, memory-mapped, from a run."""
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in files_of(directory, "tokens/*.npy")}
    except ValueError as error:
        raise InputError(f"{directory}/tokens is damaged ({error}); copy the run again.") from error


def make_loss(config: Any, model: Model) -> Callable:
    """Cross-entropy of the next token; ``extra`` is the state a model carries from window to window."""

    def loss_fn(params, carry, batch, key, hyper):
        # A dropout of 0 that is not traced draws no random numbers.
        dropout = hyper.dropout if config.hyper.dropout > 0 else 0.0
        carry, logits = model.apply(params, batch.inputs, carry, resets=batch.resets, dropout=dropout, key=key)
        loss = losses.cross_entropy(logits, batch.targets, where=batch.where, label_smoothing=hyper.label_smoothing)
        return loss, (carry, {})

    return loss_fn


def evaluation(config: Any, model: Model, array: np.ndarray, tokenizer: Tokenizer | None = None) -> train.Evaluation:
    """Loss, bits, perplexity and accuracy over every token of ``array``.

    What a model carries is carried throughout. A Transformer carries nothing: it begins every window anew.

    With a tokenizer whose tokens are the text, whole (characters, bytes, subwords), also bits_per_byte of UTF-8: by it
    models with different vocabularies can be compared.
    """
    next(evaluation_windows(array, batch_size=1, window=1))  # refuses too short a text now, not after hours of training
    lossless = tokenizer is not None and tokenizer.kind in ("char", "byte", "bpe") and not np.any(array == UNK)
    n_bytes = len(tokenizer.decode(array[1:]).encode()) if lossless else 0

    def finish(values):
        nats = values["loss"]
        values = values | {"bits": losses.bits(nats), "perplexity": float(losses.perplexity(nats))}
        return values | ({"bits_per_byte": values["bits"] * (len(array) - 1) / n_bytes} if n_bytes else {})

    return train.Evaluation(
        init=lambda params: model.apply(params, config.batch_size, method="initial_carry"),
        step=partial(_evaluate_window, model.apply),
        batches=lambda: evaluation_windows(array, batch_size=config.batch_size, window=config.window),
        finish=finish,
    )


def make_evaluate(config: Any, model: Model, array: np.ndarray, tokenizer: Tokenizer | None = None) -> Callable:
    """``params -> metrics``, those of `evaluation`."""
    return train.make_evaluate(evaluation(config, model, array, tokenizer))


@partial(jax.jit, static_argnames="apply")  # compiled once for all splits
def _evaluate_window(apply, params, carry, batch):
    carry, logits = apply(params, batch.inputs, carry, resets=batch.resets)
    loss = losses.cross_entropy(logits, batch.targets, where=batch.where)
    correct = jnp.sum((jnp.argmax(logits, -1) == batch.targets) & batch.where).astype(jnp.float32)
    return carry, {"loss": loss, "accuracy": (correct, loss[1])}


def make_optimizer(config: Any) -> Callable:
    """hyper -> optax chain."""
    schedule = train.unit_schedule(config.schedule, config.loop.steps, config.warmup)
    return train.make_optimizer(config.optimizer, schedule, average=config.hyper.ema > 0)


def initial(config: Any, model: Model, key: jax.Array) -> train.State:
    """The state before the first step."""
    key_init, key_train = jax.random.split(key)
    params = model.init(key_init)
    carry = model.apply(params, config.batch_size, method="initial_carry")
    return train.init_state(params, carry, key_train, make_optimizer(config)(config.hyper))


def start(init: Callable, config: Any, mesh: Mesh | None, axes: Callable, *, extra: P = sharding.REPLICATED) -> Any:
    """The state before the first step, on the devices of a run; the last arguments are those of `initialise`."""
    key = jax.random.key(config.seed)
    if mesh is None:
        return jax.jit(init)(key)
    axes = axes()
    if jax.process_index() == 0:
        for line in sharding.kept_whole(mesh, axes, jax.eval_shape(init, key).params):
            print(f"note: {line}", file=sys.stderr)
    return sharding.initialise(init, key, mesh, axes, extra=extra)


def reading(mesh: Mesh | None) -> dict[str, Any]:
    """The option of batches by which a process reads its rows only."""
    return {} if mesh is None else {"rows": partial(sharding.local_rows, mesh)}


def setup(config: Any, tokenizer: Tokenizer, arrays: Mapping[str, np.ndarray], mesh: Mesh | None = None) -> train.Setup:
    """What trains and measures the model of a configuration; on a mesh, with those rows of batches that are read here.

    Raises:
      InputError: the batch does not divide over the mesh.
    """
    if mesh is not None:
        sharding.check_rows(mesh, "batch_size", config.batch_size)
    model = build(config.model, tokenizer.vocab_size)
    sizes = {"batch_size": config.batch_size, "window": config.window}
    windows = BPTTWindows(arrays["train"], **sizes, seed=data_seed(config), **reading(mesh))
    return train.Setup(
        init=partial(initial, config, model),
        train_step=train.make_step(make_loss(config, model), make_optimizer(config), accumulate=config.accumulate),
        batches=lambda start, stop: batches(windows, start=start, stop=stop, accumulate=config.accumulate),
        evaluation=evaluation(config, model, arrays["validation"], tokenizer),
    )


def data_seed(config: Any) -> int:
    """The seed of the order of the data."""
    return config.seed if config.data_seed is None else config.data_seed


def fit(
    config: Any, run: Run, tokenizer: Tokenizer, arrays: Mapping[str, np.ndarray], parts: train.Setup | None = None
) -> tuple[Model, Any, dict[str, float]]:
    """Train, by `setup` or another: the model, its weights, and their metrics on the validation split."""
    model, parts = build(config.model, tokenizer.vocab_size), parts or setup(config, tokenizer, arrays, run.mesh)
    state = start(parts.init, config, run.mesh, model.axes, extra=P("batch"))
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {arrays['train'].size:,} training tokens, vocabulary {tokenizer.vocab_size}, "
        f"{n_weights:,} weights, on {jax.default_backend()}"
    )
    evaluate = train.make_evaluate(parts.evaluation, run.mesh)
    values: dict[str, float] = {}

    def evaluate_and_keep(params):
        values.update(evaluate(params))
        return values

    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=evaluate_and_keep,
        tokens_per_step=config.batch_size * config.window * config.accumulate,
        place=run.mesh and sharding.place(run.mesh, axis=int(config.accumulate > 1)),
        resume=run.resume,
    )
    params = train.best_params(run.directory, state)
    # The loop ends with an evaluation of these weights, unless it had patience, or the run that was resumed had ended.
    return model, params, values if values and config.loop.patience is None else evaluate(params)


def load(directory: Path, config_type: type) -> tuple[Any, Model, Tokenizer, Any]:
    """The configuration, model, tokenizer and weights of a run."""
    config = read_config(directory, config_type)
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    model = build(config.model, tokenizer.vocab_size)
    params = train.best_params(directory, jax.eval_shape(partial(initial, config, model), jax.random.key(0)))
    return config, model, tokenizer, params


# --- sub-commands


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["train", "validation", "test"] = "validation"


@dataclass(frozen=True)
class SampleOptions:
    """Options of ``sample``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    prompt: str | None = None
    """The text to go on from; without one, a new line."""
    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens."""
    top_p: float | None = None
    """Draw from the likeliest tokens that make up this probability."""
    min_p: float | None = None
    """Draw from tokens at least this likely, relative to the likeliest."""
    samples: int = 1
    length: int = 500
    """Tokens to write, unless <eos> comes first."""
    seed: int = 0

    def __post_init__(self):
        # Before a model is loaded.
        decoding.check_options(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        check_least(self, samples=1, length=1)
        check_seeds(self)


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    to: Path | None = None
    """A directory to write, or a file that ends with .zip; without one, bundle in the run directory."""


def write_bundle(
    name: str, directory: Path, to: Path | None, functions: Mapping[str, export.Function], params: Any, **about: Any
) -> None:
    """Write a trained run as a bundle that runs without its code, and say what is in it."""
    to = to or directory / "bundle"
    sizes = export.save_bundle(
        to,
        functions,
        params,
        files=[directory / "config.json", *sorted(directory.glob("*tokenizer.json"))],
        about={"experiment": name, **about, "special_tokens": {token: i for i, token in enumerate(SPECIALS)}},
    )
    print(f"wrote {to}:", *(f"  {file:22} {size:>12,} bytes" for file, size in sizes.items()), sep="\n")
    names = ", ".join(next(iter(functions.values())).arguments)
    print(f'Load it: bundle = seqjax.export.load_bundle("{to}")')
    print(f'         bundle.functions["apply"](bundle.params, {names}); README.txt there does it with jax alone')


def export_command(name: str, config_type: type) -> tuple[type, Callable[[ExportOptions], None]]:
    """The sub-command ``export`` of experiment ``name``."""

    def export_run(options: ExportOptions) -> None:
        """Write a run as files that load and run without seqjax's models: programs, weights, tokenizer."""
        directory = options.run or newest_run(name)
        _, model, _, params = load(directory, config_type)
        functions = export.language_model(model.apply, params, longest=model.longest)
        write_bundle(name, directory, options.to, functions, params, kind="language model")

    return ExportOptions, export_run


def commands(name: str, config_type: type) -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The sub-commands ``evaluate``, ``sample`` and ``export`` of experiment ``name``, for `run_experiment`."""

    def evaluate(options: EvaluateOptions) -> None:
        """Print loss (nats), bits, perplexity and accuracy of a run on one split."""
        directory = options.run or newest_run(name)
        config, model, tokenizer, params = load(directory, config_type)
        arrays = read_tokens(directory)
        if options.split not in arrays:
            raise InputError(f"split={options.split!r}: this corpus has {', '.join(arrays)}.")
        values = make_evaluate(config, model, arrays[options.split], tokenizer)(params)
        print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def sample(options: SampleOptions) -> None:
        """Write texts with a trained run."""
        directory = options.run or newest_run(name)
        _, model, tokenizer, params = load(directory, config_type)
        for number, text in enumerate(generate(model, params, tokenizer, options), start=1):
            if options.samples > 1:
                print(f"--- {number}")
            print(text)

    return {
        "evaluate": (EvaluateOptions, evaluate),
        "sample": (SampleOptions, sample),
        "export": export_command(name, config_type),
    }


def generate(model: Model, params: Any, tokenizer: Tokenizer, options: SampleOptions) -> list[str]:
    """``options.samples`` texts that begin with the prompt, drawn side by side in one compiled loop."""
    prompt = opening(tokenizer) if options.prompt is None else options.prompt
    if unknown := tokenizer.unknown(prompt):
        raise InputError(f"prompt: {unknown} are not in the vocabulary of this run; leave them out.")
    ids = tokenizer.encode(prompt)
    if ids.size == 0:
        raise InputError(f"prompt={prompt!r} holds no token; give at least one.")
    if model.longest is not None and ids.size + options.length > model.longest + 1:
        raise InputError(
            f"a prompt of {ids.size} and length={options.length}: this model has learned positions for {model.longest} "
            f"tokens; both together can be {model.longest + 1}."
        )
    drawn = continuations(
        model,
        params,
        ids,
        options.samples,
        jax.random.key(options.seed),
        max_length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
    )
    # Prompt and continuation at once: between words the tokenizer puts spaces.
    return [tokenizer.decode(np.append(ids, row)) for row in sharding.fetch(drawn.tokens)]


def continuations(
    model: Model, params: Any, prompt: np.ndarray, samples: int, key: jax.Array, **options
) -> decoding.Samples:
    """What the model writes after a prompt of ids, ``samples`` times; the options are those of `decoding.sample`."""
    # Padded to a power of two, so that prompts of few lengths are compiled.
    width = 1 << (prompt.size - 1).bit_length()
    width = width if model.longest is None else min(width, model.longest)
    prompts = jnp.tile(jnp.asarray(np.pad(prompt, (0, width - prompt.size))), (samples, 1))
    state = model.apply(params, samples, method="init_state")
    state, logits = model.prefill(params, state, prompts, jnp.full(samples, prompt.size, jnp.int32))
    return decoding.sample(model.step, params, state, logits, key, eos=EOS, **options)


def opening(tokenizer: Tokenizer) -> str:
    """A new line; where the vocabulary has none (text8 is a single line), its first entry."""
    return tokenizer.vocab[len(SPECIALS)] if tokenizer.unknown("\n") else "\n"


def show_samples(
    model: Model, params: Any, tokenizer: Tokenizer, *, length: int, temperatures: tuple[float, ...] = (0.5, 0.8, 1.0)
) -> None:
    """Print a text at each temperature, as long as the model can write."""
    length = length if model.longest is None else min(length, model.longest)
    for temperature in temperatures:
        print(f"\n--- a sample at temperature {temperature}")
        print(*generate(model, params, tokenizer, SampleOptions(temperature=temperature, length=length)))
