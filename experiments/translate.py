"""Translation of sentences, learned from a text in two languages: a Transformer, or a GRU with attention.

    python -m experiments.translate --data.path multi30k           # de to en: train.de, train.en, val.de … in a folder
    python -m experiments.translate train gru --data.path multi30k
    python -m experiments.translate train enja --data.path small_parallel_enja
    python -m experiments.translate --data.path mine --data.source fr --data.target en --data.tokenizer word
    python -m experiments.translate evaluate --split test --average 3
    python -m experiments.translate predict --input sentences.de --output sentences.en
    python -m experiments.translate interactive --maps maps

Raw text goes in and comes out: the tokenizers are trained on the corpus and kept in the run. Files may be in .gz. Of
the metrics, ``bleu`` is sacreBLEU's (13a); ``bleu_tokenised`` is that of lower-cased words, as in most papers on
Multi30k. Results and times are in experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import seq2seq_commands, seq2seq_runs, seq2seq_texts
from experiments.seq2seq_runs import Batching, Task
from experiments.seq2seq_texts import Corpus, Example, Texts
from experiments.seq2seq_writer import Report, Search, show
from seqjax import metrics, train
from seqjax.config import Run, run_experiment
from seqjax.data import parallel_folder, without_empty
from seqjax.errors import InputError
from seqjax.models.rnn_seq2seq import RNNSeq2SeqConfig
from seqjax.models.transformer_seq2seq import TransformerSeq2SeqConfig
from seqjax.text import split_words

NAME = "translate"


@dataclass(frozen=True)
class Data:
    """The corpus."""

    path: Path | None = None
    """A folder with train.de, train.en, val.de (or valid, dev), val.en and, if there is one, a test split."""
    source: str = "de"
    """The ending of the files that are read."""
    target: str = "en"
    lowercase: bool = False
    tokenizer: Literal["bpe", "word", "space", "char"] = "bpe"
    """bpe: subwords; word: words and punctuation marks; space: what stands between spaces; char: characters."""
    joint: bool = False
    """One vocabulary for both languages."""
    min_count: int = 1
    """Rarer words are <unk>; with bpe, rarer pairs are not joined."""
    max_size: int | None = 4000
    """The largest vocabulary."""
    bpe_dropout: float = 0.0
    """The rate at which joins of bpe are left out in training, anew every epoch."""

    def __post_init__(self):
        if not 0 <= self.bpe_dropout < 1 or (self.bpe_dropout and self.tokenizer != "bpe"):
            raise InputError(f"data.bpe_dropout={self.bpe_dropout}; it must be below 1, and 0 for other tokenizers.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: RNNSeq2SeqConfig | TransformerSeq2SeqConfig = TransformerSeq2SeqConfig(
        d_model=128, n_heads=4, n_layers=2, d_ff=512
    )
    hyper: train.Hyper = train.Hyper(lr=3e-3, b2=0.98, dropout=0.1, label_smoothing=0.1)
    loop: train.Loop = train.Loop(steps=3000, eval_every=1000, checkpoint_every=1000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 400
    """Steps of linear warm-up."""
    batches: Batching = Batching(tokens=1536, n_buckets=6, max_source=64, max_target=64)
    search: Search = Search()
    report: Report = Report()

    def __post_init__(self):
        if (self.model.tied == "all" or getattr(self.model, "copy", False)) and not self.data.joint:
            raise InputError("model.tied='all' and model.copy need one vocabulary; set --data.joint.")
        seq2seq_runs.check(self)


PRESETS = {
    "transformer": ("a small Transformer (2 + 2 layers of 128) over subwords: ten minutes on a laptop", Config()),
    "gru": (
        "a bidirectional GRU with Bahdanau's score and input feeding, over subwords",
        Config(
            model=RNNSeq2SeqConfig("gru", 128, 256, attention="additive", input_feeding=True),
            hyper=train.Hyper(lr=2e-3, b2=0.98, dropout=0.2, label_smoothing=0.1),
        ),
    ),
    "multi30k_gru": (
        "the size of the published GRU with attention (512 units), over lower-cased words; for a GPU",
        Config(
            data=Data(lowercase=True, tokenizer="word", min_count=2, max_size=None),
            model=RNNSeq2SeqConfig("gru", 256, 512, attention="additive", d_attention=512, input_feeding=True),
            hyper=train.Hyper(lr=1e-3, b2=0.98, dropout=0.5, label_smoothing=0.1),
            loop=train.Loop(
                steps=6000, eval_every=500, checkpoint_every=500, monitor="bleu", best="highest", patience=4
            ),
            batches=Batching(tokens=4096, n_buckets=4, max_source=64, max_target=64),
        ),
    ),
    "multi30k_transformer": (
        "the size of the published Transformer (9 M: 3 + 3 layers of 256), over subwords; for a GPU",
        Config(
            data=Data(max_size=8000, joint=True, bpe_dropout=0.1),
            model=TransformerSeq2SeqConfig(d_model=256, n_heads=8, n_layers=3, d_ff=1024, tied="all"),
            hyper=train.Hyper(lr=2e-3, b2=0.98, dropout=0.3, label_smoothing=0.1),
            loop=train.Loop(steps=8000, eval_every=500, checkpoint_every=500, keep=5),
            warmup=1000,
            batches=Batching(tokens=4096, n_buckets=4, max_source=80, max_target=80),
        ),
    ),
    "enja": (
        "English to Japanese, cut into words already (small_parallel_enja)",
        Config(
            data=Data(source="en", target="ja", tokenizer="space", min_count=2, max_size=None),
            batches=Batching(tokens=1536, n_buckets=4, max_source=32, max_target=32),
        ),
    ),
    "smoke": (
        "seconds: does everything run?",
        Config(
            data=Data(max_size=300),
            model=TransformerSeq2SeqConfig(d_model=16, n_heads=2, n_layers=1, d_ff=32),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=10),
            batches=Batching(tokens=256, n_buckets=2, max_source=32, max_target=32),
            search=Search(beam_size=2),
            report=Report(texts=20, maps=1, samples=1),
        ),
    ),
}


def clean(config: Config, line: str) -> str:
    """A line as the model reads it."""
    line = " ".join(line.split())
    return line.lower() if config.data.lowercase else line


def corpus(config: Config) -> Corpus:
    """split -> pairs of sentences."""
    data = config.data
    if data.path is None:
        raise InputError(
            f"data.path: give a folder with train.{data.source}, train.{data.target}, val.{data.source} and so on."
        )
    splits = {}
    for split, (sources, targets) in parallel_folder(data.path, data.source, data.target).items():
        if split == "train":
            sources, targets, dropped = without_empty(sources, targets)
            if dropped:
                print(f"warning: {dropped} pairs of train have an empty side and were left out")
        lines = zip(sources, targets, strict=True)
        splits[split] = [Example(clean(config, source), (clean(config, target),)) for source, target in lines]
    return splits


def measure(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """BLEU as sacreBLEU has it, BLEU of lower-cased words, and chrF."""
    words, known = _words(hypotheses), [_words(texts) for texts in references]
    return {
        "bleu": metrics.bleu(hypotheses, references).score,
        "bleu_tokenised": metrics.bleu(words, known, tokenize="none").score,
        "chrf": metrics.chrf(hypotheses, references).score,
    }


def _words(texts: list[str]) -> list[str]:
    return [" ".join(split_words(text.lower())) for text in texts]


TASK = Task(NAME, Config, measure, clean)


def prepare(config: Config, directory: Path) -> tuple[Texts, Corpus]:
    """Tokenizers and texts."""
    data = config.data
    return seq2seq_texts.prepare(
        directory,
        lambda: corpus(config),
        kinds=(data.tokenizer, data.tokenizer),
        joint=data.joint,
        min_count=data.min_count,
        max_size=data.max_size,
    )


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the texts of a run or a study."""
    return seq2seq_runs.setup(config, TASK, directory, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write."""
    texts, splits = prepare(config, run.directory)
    writer, _ = seq2seq_runs.fit(config, run, TASK, texts, splits)
    show(writer, splits["validation"], config, run.directory)
    if "test" in splits:
        print("\nsignature", metrics.bleu([""], [""]).signature)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = seq2seq_commands.commands(TASK)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
