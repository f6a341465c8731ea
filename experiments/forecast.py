"""Forecasts of time series, beside those that need no network.

    python -m experiments.forecast                                    # sunspots, from the statsmodels package
    python -m experiments.forecast train etth1 --data.path ETTh1.csv  # any .csv: a time, then quantities
    python -m experiments.forecast train etth1 --data.path ETTh1.csv --data.horizon 1
    python -m experiments.forecast evaluate                           # the newest run; writes forecast.png
    python -m experiments.forecast predict                            # what comes after the end of the series
    python -m experiments.forecast export

A model reads ``window`` values and says all of the next ``horizon``, scaled by mean and standard deviation of the
training part. "persistence" is the last value; "AR(p)" a linear function of the p last values of the same quantity,
fitted to the training part by least squares and applied to its own forecasts. ``loss`` is the mean squared error of
scaled values, as Informer reports it (Zhou et al., 2021); RMSE and MAE of a single quantity are in its own unit.
Results and times are in experiments/README.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from experiments import series_runs
from experiments.series_runs import (
    EvaluateOptions,
    Examples,
    Measures,
    ModelConfig,
    Predictor,
    Problem,
    SeriesRNNConfig,
    Task,
    TCNConfig,
)
from seqjax import train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.data.series import Series, series_file, sunspots
from seqjax.errors import InputError, check_least

NAME = "forecast"


@dataclass(frozen=True)
class Data:
    """The series, and what is asked about it."""

    path: Path | None = None
    """A .csv whose first column tells the time; without one, the sunspots of the statsmodels package."""
    columns: tuple[str, ...] = ()
    """The quantities to read and to forecast; without any, all."""
    parts: tuple[int, int, int] | None = None
    """Rows of the training, validation and test part, in this order; without them, 70, 10 and 20 of a hundred. A later
    part may look back into an earlier one."""
    window: int = 24
    """Rows that a model sees."""
    horizon: int = 1
    """Rows that it forecasts."""
    difference: bool = False
    """Values count from the last one seen."""
    order: int = 9
    """p of AR(p)."""

    def __post_init__(self):
        check_least(self, "data.", window=1, horizon=1, order=1)
        if self.order > self.window:
            raise InputError(f"data.order={self.order}: AR(p) sees the window too, {self.window} rows; lower it.")
        if self.parts is not None and min(self.parts) < self.horizon:
            raise InputError(f"data.parts={self.parts}: each must have {self.horizon} rows, data.horizon, at least.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: ModelConfig = SeriesRNNConfig()
    """The preset decides which of the three."""
    hyper: train.Hyper = train.Hyper(lr=2e-3, b2=0.999)
    loop: train.Loop = train.Loop(steps=2000, log_every=100, eval_every=100, checkpoint_every=500, patience=10)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    warmup: int = 50
    """Steps of linear warm-up."""
    batch_size: int = 32

    def __post_init__(self):
        series_runs.check(self, frames=False)


SUNSPOTS = (221, 35, 53)
"""Rows of the years until 1920, until 1955 and until 2008: the split of the literature."""

_ETT = Data(parts=(8640, 2880, 2880), window=96, horizon=24, difference=True)
"""Informer's: 12, 4 and 4 months of hours."""

PRESETS = {
    "sunspots": (
        "the number of sunspots next year: 1700-1920 trains, 1921-1955 validates, 1956-2008 tests; a GRU",
        Config(model=SeriesRNNConfig(d_hidden=32)),
    ),
    "etth1": (
        "needs --data.path; oil temperature and load of a transformer for the next 24 hours, a GRU",
        Config(data=_ETT, model=SeriesRNNConfig(d_hidden=64), batch_size=64),
    ),
    "etth1_tcn": (
        "needs --data.path; a temporal convolutional network",
        Config(data=_ETT, model=TCNConfig(d_hidden=32, n_layers=4, kernel=3), batch_size=64),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            data=Data(horizon=3),
            model=SeriesRNNConfig(d_hidden=8),
            loop=train.Loop(steps=20, log_every=10, eval_every=10, checkpoint_every=10),
        ),
    ),
}


# --- windows


class Windows(NamedTuple):
    """A series cut into what is seen and what is to be forecast, all scaled."""

    names: tuple[str, ...]
    times: tuple[str, ...]  # of all rows
    values: np.ndarray  # [T, D]
    mean: np.ndarray  # [D], of the training part
    std: np.ndarray  # [D]
    parts: Mapping[str, tuple[int, int]]  # split -> its first row, and that after its last one
    begins: Mapping[str, np.ndarray]  # split -> the first row of each forecast

    def seen(self, begins: np.ndarray, window: int) -> np.ndarray:
        """[N, window, D]: the rows before each forecast."""
        return self.values[begins[:, None] + np.arange(-window, 0)]

    def following(self, begins: np.ndarray, horizon: int) -> np.ndarray:
        """[N, horizon, D]: the rows that are forecast."""
        return self.values[begins[:, None] + np.arange(horizon)]


def cut(series: Series, data: Data) -> Windows:
    """Scale and cut a series; forecasts of a split lie within it, what is seen before them may not."""
    n = len(series.values)
    shares = n - n * 3 // 10, n // 10, n * 3 // 10 - n // 10
    n_train, n_validation, n_test = data.parts or (SUNSPOTS if data.path is None else shares)
    ends = np.cumsum([n_train, n_validation, n_test])
    if ends[-1] > n:
        raise InputError(f"data.parts={data.parts}: the series has {n} rows only; lower them.")
    if n_train < data.window + data.horizon or min(n_validation, n_test) < data.horizon:
        raise InputError(
            f"data.window={data.window} and data.horizon={data.horizon} do not fit into {n_train}, {n_validation} and "
            f"{n_test} rows of training, validation and test; lower them."
        )
    known = series.values[:n_train]
    mean, std = known.mean(axis=0), known.std(axis=0)
    spread = np.ptp(known, axis=0)  # not std, which rounding keeps from 0
    if not spread.all():
        name = series.names[int(np.argmin(spread))]
        raise InputError(f"{name} is the same in all rows of the training part; leave it out of data.columns.")
    firsts = (0, *ends[:-1].tolist())
    parts = {split: (a, b) for split, a, b in zip(("train", "validation", "test"), firsts, ends.tolist(), strict=True)}
    begins = {split: np.arange(max(a, data.window), b - data.horizon + 1) for split, (a, b) in parts.items()}
    return Windows(series.names, series.times, (series.values - mean) / std, mean, std, parts, begins)


def read(data: Data) -> Windows:
    """The series of the file or of the package, cut."""
    return cut(sunspots() if data.path is None else series_file(data.path, columns=data.columns), data)


def examples(windows: Windows, data: Data, begins: np.ndarray) -> Examples:
    """What a model sees, and what it should say."""
    seen, following = windows.seen(begins, data.window), windows.following(begins, data.horizon)
    if data.difference:
        seen, following = seen - seen[:, -1:], following - seen[:, -1:]
    return Examples(seen.astype(np.float32), following.reshape(len(begins), -1).astype(np.float32), frames=False)


# --- what needs no network


def fit_ar(values: np.ndarray, order: int) -> np.ndarray:
    """The least-squares c of ``x_t = c_0 + Σ_i c_i x_(t - i)``, i = 1 … order, for a series [T].

    >>> (fit_ar(2.0 ** np.arange(8), 1).round(6) + 0.0).tolist()
    [0.0, 2.0]
    """
    past = np.lib.stride_tricks.sliding_window_view(values[:-1], order)[:, ::-1]
    return np.linalg.lstsq(np.insert(past, 0, 1.0, axis=1), values[order:], rcond=None)[0]


def run_ar(coefficients: np.ndarray, seen: np.ndarray, horizon: int) -> np.ndarray:
    """Forecasts [N, horizon] after rows [N, window], each from those before it."""
    order = len(coefficients) - 1
    rows = seen[:, -order:]
    for _ in range(horizon):
        following = coefficients[0] + rows[:, ::-1][:, :order] @ coefficients[1:]
        rows = np.concatenate([rows, following[:, None]], axis=1)
    return rows[:, order:]


def baselines(windows: Windows, data: Data) -> dict[str, dict[str, np.ndarray]]:
    """split -> name -> forecasts [N, horizon, D]."""
    a, b = windows.parts["train"]
    fitted = [fit_ar(column, data.order) for column in windows.values[a:b].T]
    found = {}
    for split, begins in windows.begins.items():
        seen = windows.seen(begins, data.window)
        persistence = np.repeat(seen[:, -1:], data.horizon, axis=1)
        ar = [run_ar(c, seen[..., d], data.horizon) for d, c in enumerate(fitted)]
        found[split] = {"persistence": persistence, f"AR({data.order})": np.stack(ar, axis=-1)}
    return found


def finish(std: np.ndarray, values: Mapping[str, float]) -> dict[str, float]:
    """RMSE and MAE in the unit of the series, if there is one; else of scaled values."""
    unit = float(std[0]) if len(std) == 1 else 1.0
    return {"loss": values["loss"], "rmse": unit * values["loss"] ** 0.5, "mae": unit * values["mae"]}


def problem(config: Config, windows: Windows | None = None) -> Problem:
    """The next rows of a series."""
    data = config.data
    windows = windows or read(data)
    of_split = {split: examples(windows, data, begins) for split, begins in windows.begins.items()}
    compared = {}
    for split, forecasts in baselines(windows, data).items():
        right = windows.following(windows.begins[split], data.horizon)
        compared[split] = {
            f"{name} {measure}": value
            for name, forecast in forecasts.items()
            for measure, value in finish(
                windows.std, {"loss": np.mean((forecast - right) ** 2), "mae": np.mean(np.abs(forecast - right))}
            ).items()
        }
    d = len(windows.names)
    scaling = {"names": windows.names, "mean": windows.mean.tolist(), "std": windows.std.tolist()}
    return Problem(
        d,
        d * data.horizon,
        partial(of_split["train"].epochs, config.batch_size),
        {split: partial(of.once, config.batch_size) for split, of in of_split.items()},
        Measures(series_runs.squared_error, series_runs.measure_errors, partial(finish, windows.std)),
        compared,
        scaling | {"horizon": data.horizon, "difference": data.difference},
    )


TASK = Task(NAME, Config, problem)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, for a study."""
    return series_runs.setup(config, TASK)


def run(config: Config, run: Run) -> None:
    """Train, evaluate, draw."""
    predictor, _ = series_runs.fit(config, run, TASK)
    draw(predictor, read(config.data), "test", run.directory / "forecast.png")


# --- sub-commands


def forecasts(predictor: Predictor, windows: Windows, begins: np.ndarray) -> np.ndarray:
    """[N, horizon, D]: what the model says after each window, scaled."""
    data = predictor.config.data
    seen = windows.seen(begins, data.window)
    origin = seen[:, -1:] if data.difference else np.zeros_like(seen[:, -1:])
    given = Examples((seen - origin).astype(np.float32), np.zeros((len(begins), 1), np.float32), frames=False)
    found = np.concatenate([y[b.where] for b, y in predictor.outputs(given.once(predictor.config.batch_size))])
    return found.reshape(len(begins), data.horizon, -1) + origin


def evaluate(options: EvaluateOptions) -> None:
    """Print the errors of a run on one split beside those of persistence and AR(p), and draw the forecasts."""
    directory = options.run or newest_run(NAME)
    predictor = series_runs.load(directory, TASK)
    series_runs.show_evaluation(predictor, options.split, directory)
    draw(predictor, read(predictor.config.data), options.split, directory / "forecast.png")


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    path: Path | None = None
    """A .csv with the same columns; without one, the series of the training."""


def predict(options: PredictOptions) -> None:
    """Print what comes after the end of a series, between commas."""
    predictor = series_runs.load(options.run or newest_run(NAME), TASK)
    data = predictor.config.data
    windows = read(data)
    if options.path is not None:
        series = series_file(options.path, columns=windows.names)
        if len(series.values) < data.window:
            raise InputError(f"path={options.path}: {len(series.values)} rows; the model sees {data.window}.")
        windows = windows._replace(values=(series.values - windows.mean) / windows.std, times=series.times)
    (found,) = forecasts(predictor, windows, np.array([len(windows.values)])) * windows.std + windows.mean
    print("steps after " + windows.times[-1], *windows.names, sep=",")
    for step, row in enumerate(found, 1):
        print(step, *(f"{value:.6g}" for value in row), sep=",")


def draw(predictor: Predictor, windows: Windows, split: str, path: Path, *, rows: int = 300) -> None:
    """The last rows of a split and what was forecast for them, end to end; if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return
    data = predictor.config.data
    begins = windows.begins[split][::-1][: -(-rows // data.horizon) * data.horizon : data.horizon][::-1]
    shown = begins[:, None] + np.arange(data.horizon)
    scale = windows.std[-1], windows.mean[-1]  # of the last quantity, which is the one of interest in most files
    all_baselines = baselines(windows, data)[split]
    chosen = begins - windows.begins[split][0]
    lines = {
        "measured": (windows.values[shown, -1], {"color": "#3a3a3a", "linewidth": 1.6}),
        **{
            name: (values[chosen, :, -1], {"linewidth": 0.9, "linestyle": "--", "color": color})
            for (name, values), color in zip(all_baselines.items(), ("#b8b8b8", "#8fb3d9"), strict=True)
        },
        "model": (forecasts(predictor, windows, begins)[..., -1], {"color": "#c2452d", "linewidth": 1.2}),
    }
    figure = Figure(figsize=(9, 4.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    for name, (values, style) in lines.items():
        axes.plot(shown.ravel(), values.ravel() * scale[0] + scale[1], label=name, **style)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    labels = dict(enumerate(time.replace(" ", "\n") for time in windows.times))
    axes.xaxis.set_major_formatter(lambda row, _: labels.get(int(row), ""))
    axes.set(ylabel=windows.names[-1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(lines), borderaxespad=0.2)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = series_runs.commands(TASK) | {
        "evaluate": (EvaluateOptions, evaluate),
        "predict": (PredictOptions, predict),
    }
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
