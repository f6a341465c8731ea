"""How an experiment that reads words starts from the run of a language model, its trunk; no experiment itself.

A run that was started has, beside what every run has, and so needs nothing of the language model's run again:

    trunk.json             the configuration of the language model
    trunk_tokenizer.json   what cuts texts for it
    trunk.npz              its weights, by dotted names
"""

import importlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import lm_runs
from seqjax import export, train
from seqjax.config import read_config
from seqjax.errors import InputError
from seqjax.models import finetuned
from seqjax.text import SPECIALS, Tokenizer, load_tokenizer

EXPERIMENTS = ("char_lm", "word_lm", "fixed_window_lm", "masked_lm")
"""Those whose runs can be started from."""


class Trunk(NamedTuple):
    """The language model that another model has in it."""

    config: Any  # of its model
    tokenizer: Tokenizer
    lower: bool  # texts are read in lower case
    opening: tuple[int, ...]  # ids before each text

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text; None is any."""
        return getattr(self.config, "longest", None)

    @property
    def key(self) -> tuple[Any, int]:
        """What `make` takes."""
        return self.config, self.tokenizer.vocab_size


def make(key: tuple[Any, int], rngs: nnx.Rngs) -> nnx.Module:
    """The language model of `Trunk.key`."""
    config, vocab_size = key
    return lm_runs.TRUNKS[type(config)](config, vocab_size, rngs=rngs)


def copy(run: Path, directory: Path) -> None:
    """What is needed of a language model's run.

    Raises:
      InputError: it is no run of a language model, or has no checkpoint.
    """
    config_type = _config_type(run)
    *_, params = lm_runs.load(run, config_type)
    # Its output layer is no part of a trunk.
    named = {name: np.asarray(w) for name, w in export.flatten(params).items() if not name.startswith("out.")}
    np.savez(directory / "trunk.npz", **named)
    shutil.copyfile(run / "config.json", directory / "trunk.json")
    shutil.copyfile(run / "tokenizer.json", directory / "trunk_tokenizer.json")


def _config_type(path: Path) -> type:
    """The type of configuration of a language model's run, or of its trunk.json."""
    file = path / "config.json" if path.is_dir() else path
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("experiment")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"start={path}: this is no run of a language model ({error}).") from error
    if name not in EXPERIMENTS:
        raise InputError(f"start={path}: this is a run of {name!r}; give one of {', '.join(EXPERIMENTS)}.")
    return importlib.import_module(f"experiments.{name}").Config


def load(directory: Path) -> Trunk | None:
    """The trunk of a run, without its weights; None if it has none."""
    file = directory / "trunk.json"
    if not file.exists():
        return None
    tokenizer = load_tokenizer(directory / "trunk_tokenizer.json")
    # Texts are lines, so each begins as if after another. A vocabulary without line ends has not seen several texts.
    opening = () if tokenizer.unknown("\n") else tuple(tokenizer.encode("\n").tolist())
    return Trunk(read_config(file, _config_type(file)).model, tokenizer, not _has_capitals(tokenizer), opening)


def _has_capitals(tokenizer: Tokenizer) -> bool:
    if tokenizer.kind == "byte":
        return True
    known = range(len(SPECIALS) + 256 * (tokenizer.kind == "bpe"), tokenizer.vocab_size)  # all have every byte
    return any(letter.isupper() for i in known for letter in tokenizer.decode([i]))


def weights(directory: Path) -> dict[str, np.ndarray]:
    """What the weights of a trunk begin with, by their dotted names in the model that it is in."""
    with np.load(directory / "trunk.npz") as named:
        return {f"trunk.{name}": named[name] for name in named.files}


def cut(trunk: Trunk, texts: Iterable[Sequence[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For the words of each text: the tokens of the trunk [S], and the place of the last one of each word [T].

    They are those of the words joined by spaces.
    """
    known: dict[str, list[int]] = {}

    def ids(text: str) -> list[int]:
        if text not in known:
            known[text] = trunk.tokenizer.encode(text.lower() if trunk.lower else text).tolist()
        return known[text]

    rows = []
    for words in texts:
        pieces = [ids(f" {word}" if i else word) for i, word in enumerate(words)]
        ends = len(trunk.opening) + np.cumsum([len(piece) for piece in pieces], dtype=np.int32) - 1
        row = np.array([*trunk.opening, *(i for piece in pieces for i in piece)], np.int32)[: trunk.longest]
        rows.append((row, np.clip(ends, 0, max(len(row) - 1, 0)).astype(np.int32)))
    return rows


def about(trunk: Trunk | None) -> dict[str, Any]:
    """What a bundle says of the tokens that its trunk reads."""
    if trunk is None:
        return {}
    return {"trunk": {"tokenizer": "trunk_tokenizer", "lower": trunk.lower, "opening": list(trunk.opening)}}


def layer_factors(thaw: int) -> Callable[[train.Hyper], optax.GradientTransformation]:
    """Updates times `finetuned.factors`, for `train.make_optimizer`."""

    def transformation(hyper: train.Hyper) -> optax.GradientTransformation:
        def update(updates, state, params=None):
            of = finetuned.factors(updates, state.count, layer_lr=hyper.layer_lr, thaw=thaw)
            updates = jax.tree.map(lambda update, factor: update * factor.astype(update.dtype), updates, of)
            return updates, optax.ScaleByScheduleState(state.count + 1)

        return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)

    return transformation
