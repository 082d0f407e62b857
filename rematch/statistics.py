"""Paired statistics for few seeds: differences, intervals, and the correction for many claims.

Everything here sees data frames alone: records (``rematch.schema.COLUMNS``) and items (``rematch.schema.ITEM_COLUMNS``).
A *cell* is one level; a *pair* is two contenders at one level with one seed, hence with the same data, order and budget.
Differences live on the scale of the analysis: log ratios for metrics on a log scale, plain differences otherwise, and are
positive where the contender is better, whatever the metric's direction.

Two intervals answer two questions. ``t_interval`` (another run?) is Student's t over seeds; ``item_bootstrap`` (another
test set?) resamples test items with the seeds fixed. Verdicts rest on the wider one. Seeds are never bootstrapped: with
normal noise, a nominal 95 % percentile bootstrap over 3 seeds covers 75 %, over 5 seeds 84 %.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

MIN_ITEMS = 20
"""Fewer test items have no bootstrap interval: a nominal 95 % one covers 0.90 at 10 normal scores (0.87 at 10 exponential
ones), 0.93 (0.90) at 20, 0.94 (0.93) at 50; simulated, 3,000 runs."""
DRAWS = 4000
DESCRIBED_CELLS = 8
"""Aggregate descriptions (interquartile mean, probability of improvement) say little over fewer cells."""
_CHUNK = 4_000_000
_TIE = 1e-12
_SIGN = {"higher": 1.0, "lower": -1.0}


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided confidence interval, on the scale of the analysis; infinite where nothing is known."""

    estimate: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def p_against(self, threshold: float) -> float:
        """Two-sided p of the hypothesis that the true value is ``threshold``."""
        raise NotImplementedError


@dataclass(frozen=True)
class TInterval(Interval):
    """Student's t over seeds.

    Attributes:
        standard_error: of the estimate; NaN with one seed.
        df: degrees of freedom; 0 with one seed.
        n_seeds: distinct seeds that took part.
        n_cells: cells that took part.
        n_dropped: pairs that were left out to keep the design balanced (see ``balanced``).
        deterministic: no variance over seeds, so that they say nothing about another run.
    """

    standard_error: float
    df: int
    n_seeds: int
    n_cells: int
    n_dropped: int
    deterministic: bool

    def p_against(self, threshold: float) -> float:
        distance = abs(self.estimate - threshold)
        if self.df == 0:
            return 1.0
        if self.deterministic:
            return 1.0 if distance <= _TIE else 0.0
        return float(2 * stdtr(self.df, -distance / self.standard_error))


@dataclass(frozen=True)
class ItemInterval(Interval):
    """Percentile bootstrap over test items, seeds fixed. ``draws``: the resampled estimates, shape (draws,)."""

    draws: np.ndarray
    n_items: int

    def p_against(self, threshold: float) -> float:
        below = np.count_nonzero(self.draws <= threshold)
        above = np.count_nonzero(self.draws >= threshold)
        return min(1.0, 2 * (min(below, above) + 1) / (len(self.draws) + 1))


# -- from records to differences ------------------------------------------------------------------------------------


def usable(records: pd.DataFrame, metric: str, slice: str, contender: str, levels: Sequence[str]) -> pd.DataFrame:
    """One contender's values that may be compared, in the order of ``levels`` and seeds.

    Rows of any status but ``ok`` and values that are not finite on the scale of the analysis take no part.

    Returns:
        Columns level, seed, score (the value, or its logarithm), direction, scale, flops, train_flops, data_hash.

    Raises:
        ValueError: a match has the metric twice (records of several axes or tiers were mixed).
    """
    mine = records[
        (records["contender"] == contender)
        & (records["metric"] == metric)
        & (records["slice"] == slice)
        & (records["status"] == "ok")
        & records["level"].isin(list(levels))
    ]
    if mine.duplicated(["level", "seed"]).any():
        raise ValueError(
            f"{contender}: {metric} {slice}: several values for one level and seed; pass one axis and tier"
        )
    value = mine["value"].to_numpy(dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(mine["scale"] == "log", np.log(value), value)
    rank = mine["level"].map({level: index for index, level in enumerate(levels)})
    kept = mine.assign(score=score, rank=rank)[np.isfinite(score)].sort_values(["rank", "seed"], kind="stable")
    columns = ["level", "seed", "score", "direction", "scale", "flops", "train_flops", "data_hash"]
    return kept[columns].reset_index(drop=True)


def paired_differences(
    records: pd.DataFrame, metric: str, slice: str, contender: str, against: str, levels: Sequence[str]
) -> pd.DataFrame:
    """Differences of two contenders, one row a level and seed that both finished (status ``ok``) on the same data.

    Args:
        records: of one paper, axis and tier.
        levels: as text, the way records hold them (``rematch.cards.level_text``).

    Returns:
        Columns level, seed, difference (positive: the contender is better), flops_ratio and train_flops_ratio
        (contender / opponent), in the order of ``levels`` and seeds.

    Raises:
        ValueError: the metric has no better direction, changes direction or scale, or stands twice for one match.
    """
    ours = usable(records, metric, slice, contender, levels)
    theirs = usable(records, metric, slice, against, levels)
    pairs = ours.merge(theirs, on=["level", "seed"], suffixes=("", "_against"), how="inner", sort=False)
    pairs = pairs[pairs["data_hash"] == pairs["data_hash_against"]]
    kinds = {*zip(pairs["direction"], pairs["scale"], strict=True)}
    kinds |= {*zip(pairs["direction_against"], pairs["scale_against"], strict=True)}
    if len(kinds) > 1 or any(direction not in _SIGN for direction, _ in kinds):
        raise ValueError(f"{metric}: a difference needs one direction, higher or lower, and one scale, not {kinds}")
    sign = _SIGN[next(iter(kinds))[0]] if kinds else 1.0
    return pd.DataFrame(
        {
            "level": pairs["level"],
            "seed": pairs["seed"],
            "difference": sign * (pairs["score"] - pairs["score_against"]),
            "flops_ratio": _ratio(pairs["flops"], pairs["flops_against"]),
            "train_flops_ratio": _ratio(pairs["train_flops"], pairs["train_flops_against"]),
        }
    ).reset_index(drop=True)


def deviations(
    records: pd.DataFrame, metric: str, slice: str, contender: str, levels: Sequence[str], target: float
) -> pd.DataFrame:
    """How far one contender's values lie above a target: columns level, seed, difference.

    ``target`` is a value of the metric, in its unit; on a log scale the difference is ``log(value / target)``.

    Raises:
        ValueError: a metric on a log scale with a target that is not positive.
    """
    ours = usable(records, metric, slice, contender, levels)
    log = bool((ours["scale"] == "log").any())
    return ours[["level", "seed"]].assign(difference=ours["score"] - on_scale(target, "log" if log else "linear"))


def on_scale(value: float, scale: str) -> float:
    """A value of a metric on the scale of the analysis.

    Raises:
        ValueError: a value that is not positive, on a log scale.
    """
    if scale == "log" and value <= 0:
        raise ValueError(f"a metric on a log scale has positive values, not {value:g}")
    return math.log(value) if scale == "log" else value


def pessimistic_estimate(
    records: pd.DataFrame, metric: str, slice: str, contender: str, against: str, levels: Sequence[str]
) -> float | None:
    """The mean difference if every failure of the contender counted as the worst value that any contender had in its cell.

    A bound to show beside an estimate that leaves failures out, never a substitute for it. Failures are the statuses
    ``failed`` and ``timeout``; a failure of the opponent earns the contender nothing. None where nothing failed.
    """
    failed = records[(records["contender"] == contender) & records["status"].isin(["failed", "timeout"])]
    lost = {*zip(failed["level"], failed["seed"], strict=True)}
    if not lost:
        return None
    theirs = usable(records, metric, slice, against, levels)
    lost &= {*zip(theirs["level"], theirs["seed"], strict=True)}
    if not lost:
        return None
    sign = _SIGN[theirs["direction"].iloc[0]]
    everyone = [usable(records, metric, slice, name, levels) for name in sorted(set(records["contender"]))]
    gains = pd.concat(everyone).assign(gain=lambda frame: sign * frame["score"])
    worst = gains.groupby("level")["gain"].min()
    mine = [(level, seed) in lost for level, seed in zip(theirs["level"], theirs["seed"], strict=True)]
    imputed = theirs[mine].assign(difference=lambda f: f["level"].map(worst) - sign * f["score"])
    observed = paired_differences(records, metric, slice, contender, against, levels)
    columns = ["level", "seed", "difference"]
    return _mean_of_cells(pd.concat([observed[columns], imputed[columns]]))


# -- intervals over seeds -------------------------------------------------------------------------------------------


def shares_seeds(differences: pd.DataFrame) -> bool:
    """Whether some seed occurs in more than one cell."""
    return bool(differences["seed"].duplicated().any())


def balanced(differences: pd.DataFrame) -> pd.DataFrame:
    """The pairs of those seeds that every cell has, where cells share seeds; otherwise all pairs.

    A cell with a single pair is left out first where others have more: it would take all but one seed from them.
    """
    if not shares_seeds(differences):
        return differences
    sizes = differences.groupby("level")["seed"].transform("size")
    kept = differences[sizes >= min(2, sizes.max())]
    cells_of_seed = kept.groupby("seed")["level"].transform("nunique")
    return kept[cells_of_seed == kept["level"].nunique()]


def t_interval(differences: pd.DataFrame, confidence: float = 0.95) -> TInterval:
    """Student's t interval of the mean difference, cells weighing the same.

    In one cell this is the t interval over its n seeds. Over several cells the usual interval pools the variance within
    cells (df = pairs - cells). That needs independent pairs, and cells that share seeds do not have them: the same
    parent of seed s is evaluated at every level. Simulated coverage of the nominal 95 % interval (20,000 runs, normal
    differences, correlation rho between the cells of one seed):

    ==============  ======  ===========  ======================
    seeds x cells   rho     pooled       cells averaged by seed
    ==============  ======  ===========  ======================
    5 x 4           0.0     0.951        0.949
    5 x 4           0.5     0.792        0.952
    5 x 4           0.9     0.680        0.952
    3 x 4           0.0     0.948        0.950
    3 x 4           0.5     0.797        0.949
    3 x 4           0.9     0.671        0.949
    ==============  ======  ===========  ======================

    So cells that share seeds are averaged within each seed first, and the interval is t over the seed means (df = seeds
    - 1), on the seeds that every cell has (``balanced``); the pooled interval serves cells with seeds of their own. The
    price without correlation is a wider interval (5 x 4, rho 0: 1.17 against 0.94 standard deviations).

    Args:
        differences: columns level, seed, difference.

    Returns:
        Infinite bounds with one seed; bounds equal to the estimate and ``deterministic`` without variance over seeds.

    Raises:
        ValueError: no pairs, or a pair that is not finite.
    """
    if not len(differences) or not np.isfinite(differences["difference"]).all():
        raise ValueError("an interval needs at least one pair, and finite differences")
    used = balanced(differences).sort_values(["level", "seed"], kind="stable")
    n_cells = int(used["level"].nunique())
    if not len(used):  # no seed is in every cell: there is an estimate, but nothing to build an interval from
        used, n_cells, df, error = differences, int(differences["level"].nunique()), 0, math.nan
    elif shares_seeds(used) or n_cells == 1:
        means = used.groupby("seed")["difference"].mean().to_numpy()
        df = len(means) - 1
        error = float(means.std(ddof=1)) / math.sqrt(len(means)) if df else math.nan
    else:
        cells = used.groupby("level")["difference"]
        df = len(used) - cells.ngroups
        squares = float(((used["difference"] - cells.transform("mean")) ** 2).sum())
        error = math.sqrt(squares / df * float((1 / cells.size()).sum())) / cells.ngroups if df else math.nan
    estimate = _mean_of_cells(used)
    deterministic = df > 0 and error <= _TIE * max(1.0, abs(estimate))
    half = math.inf if df == 0 else 0.0 if deterministic else float(stdtrit(df, (1 + confidence) / 2)) * error
    return TInterval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        standard_error=error,
        df=df,
        n_seeds=int(used["seed"].nunique()),
        n_cells=n_cells,
        n_dropped=len(differences) - len(used),
        deterministic=deterministic,
    )


# -- intervals over items -------------------------------------------------------------------------------------------


def item_differences(
    items: pd.DataFrame,
    pairs: pd.DataFrame,
    metric: str,
    slice: str,
    contender: str,
    against: str | None,
    *,
    direction: str = "higher",
    target: float = 0.0,
) -> pd.DataFrame | None:
    """Differences item by item for the given pairs.

    Args:
        items: of one paper, axis and tier; scores are on the scale of the analysis.
        pairs: columns level and seed.
        against: the opponent; None for deviations from ``target`` (on the scale of the analysis).
        direction: ``higher`` or ``lower``, which scores are better (deviations: always ``higher``).

    Returns:
        Shape (items, pairs): columns (level, seed), NaN where a pair lacks an item that others have. None where a pair
        has no items: the mean over the others would be another quantity than that of the records.
    """
    mine = items[(items["metric"] == metric) & (items["slice"] == slice)]
    keys = pd.MultiIndex.from_frame(pairs[["level", "seed"]])
    ours = _scores(mine, contender, keys)
    frame = ours - target if against is None else (ours - _scores(mine, against, keys)) * _SIGN[direction]
    return None if frame.isna().all().any() else frame.dropna(how="all").sort_index()


def item_bootstrap(
    differences: pd.DataFrame, key: str, confidence: float = 0.95, draws: int = DRAWS
) -> ItemInterval | None:
    """Percentile bootstrap of the mean difference over test items; both arms, all seeds and all cells move together.

    An item is drawn with all the pairs that have it, so that what these share in its difficulty stays in the interval
    (where different seeds or cells have different items under the same number, this is right as well: their average is
    resampled). Groups of pairs with different item numbers are drawn independently. Cells weigh the same, and seeds
    within a cell.

    Args:
        differences: shape (items, pairs), columns (level, seed), as ``item_differences`` gives it.
        key: what is estimated; seeds the generator, so that every call gives the same bits.

    Returns:
        None with fewer than ``MIN_ITEMS`` items.
    """
    levels = differences.columns.get_level_values("level")
    per_level = levels.value_counts()
    weights = np.array([1 / (per_level[level] * len(per_level)) for level in levels])
    scores = differences.to_numpy(dtype=float)
    present = ~np.isnan(scores)
    groups: dict[bytes, list[int]] = {}
    for column in sorted(range(scores.shape[1]), key=lambda c: differences.columns[c]):
        groups.setdefault(present[:, column].tobytes(), []).append(column)
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32))
    estimate, resampled = 0.0, np.zeros(draws)
    for columns in groups.values():
        vector = (scores[:, columns] @ weights[columns])[present[:, columns[0]]]
        if len(vector) < MIN_ITEMS:
            return None
        estimate += float(vector.mean())
        step = max(1, _CHUNK // len(vector))  # bounds the memory of the drawn positions
        for start in range(0, draws, step):
            shape = (min(step, draws - start), len(vector))
            resampled[start : start + step] += vector[rng.integers(len(vector), size=shape)].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ItemInterval(estimate, float(low), float(high), draws=resampled, n_items=int(present.any(axis=1).sum()))


def wider(over_seeds: TInterval, over_items: ItemInterval | None, *, counted: bool = False) -> Interval:
    """The interval that a verdict rests on: the wider one.

    Without variance over seeds only the items speak; without items either, nothing is known (infinite bounds), but of a
    quantity that is ``counted``, without chance in it: then the one value is all there is.
    """
    if over_seeds.deterministic and counted:
        return over_seeds
    if over_seeds.deterministic:
        return over_items or replace(over_seeds, low=-math.inf, high=math.inf)
    if over_items is None or over_seeds.width >= over_items.width:
        return over_seeds
    return over_items


# -- many claims, and descriptions ----------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scand. J. Stat. 1979), in the order given.

    Raises:
        ValueError: a p that is not in [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values lie in [0, 1], not {list(p_values)}")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def sign_flip_floor(n_seeds: int) -> float:
    """The smallest two-sided p that a sign-flip (or signed-rank) test can reach: 2 / 2^n. Below six seeds it is over 0.05.

    Student's t has no such floor; this says why the rank tests that papers like cannot decide here.
    """
    return min(1.0, 2.0 ** (1 - n_seeds))


@dataclass(frozen=True)
class Description:
    """Aggregates over many cells, without any claim to significance."""

    interquartile_mean: float
    probability_of_improvement: float


def describe(differences: pd.DataFrame) -> Description | None:
    """Interquartile mean of the differences and the share of pairs that the contender won (ties count half).

    None with fewer than ``DESCRIBED_CELLS`` cells.
    """
    if differences["level"].nunique() < DESCRIBED_CELLS:
        return None
    from scipy.stats import trim_mean  # half a second that few papers need

    values = differences["difference"].to_numpy()
    return Description(float(trim_mean(values, 0.25)), float(np.mean((values > 0) + 0.5 * (values == 0))))


def _scores(items: pd.DataFrame, contender: str, keys: pd.MultiIndex) -> pd.DataFrame:
    """Scores of one contender, shape (items, pairs); a pair without items is a column of NaN."""
    mine = items[items["contender"] == contender]
    # Not pivot_table: it would average an item that stands there twice, where this is an error.
    return mine.pivot(index="item", columns=["level", "seed"], values="score").reindex(columns=keys)  # noqa: PD010


def _mean_of_cells(differences: pd.DataFrame) -> float:
    return float(differences.groupby("level")["difference"].mean().mean())


def _ratio(ours: pd.Series, theirs: pd.Series) -> pd.Series:
    return (ours / theirs).where(theirs > 0)
