"""From cards and a tier to what must exist: bases, matches, and the digests that decide what is played again.

A path says what a file is: ``bases/<paper>/<base>/<share>/<seed>/base.json`` and
``records/<paper>/<axis>/<contender>/<level>/<seeds>.parquet``, both under ``results/<tier>/``.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from rematch.card_models import AxisSpec, LevelValue
from rematch.cards import Card, digest_of, level_text, load_cards
from rematch.config import Settings, Tier
from rematch.errors import RematchError, unknown
from rematch.schema import SCHEMA_VERSION
from rematch.source import source_digest

ANY_SHARE = "any"
SHARED = "shared"
EVERY_AXIS = "all"
REPORT_MODULES = ("rematch.verdicts", "rematch.report")


@dataclass(frozen=True, order=True)
class BaseRun:
    """One base at one share of the budget for one seed; ``seed`` None: one copy for all seeds."""

    paper: str
    base: str
    share: float | None
    seed: int | None

    @property
    def share_text(self) -> str:
        return ANY_SHARE if self.share is None else repr(self.share)

    @property
    def seed_text(self) -> str:
        return SHARED if self.seed is None else str(self.seed)

    @property
    def name(self) -> str:
        """Relative path without extension; also the name of its log."""
        return f"bases/{self.paper}/{self.base}/{self.share_text}/{self.seed_text}"

    @property
    def path(self) -> str:
        return f"{self.name}/base.json"


@dataclass(frozen=True, order=True)
class MatchRun:
    """One contender at one level for a range of seeds: what one job plays."""

    paper: str
    axis: str
    contender: str
    level: LevelValue
    seeds: tuple[int, ...]

    @property
    def seeds_text(self) -> str:
        return str(self.seeds[0]) if len(self.seeds) == 1 else f"{self.seeds[0]}-{self.seeds[-1]}"

    @property
    def cell(self) -> str:
        """The table cell that it belongs to, as ``rematch audit`` takes it."""
        return f"{self.paper}/{self.axis}/{self.contender}/{level_text(self.level)}"

    @property
    def name(self) -> str:
        return f"records/{self.cell}/{self.seeds_text}"

    @property
    def path(self) -> str:
        return f"{self.name}.parquet"

    @property
    def items_path(self) -> str:
        return f"{self.name}.items.parquet"


class Plan:
    """Everything that one tier asks for, paper by paper. Cheap: no file of ``results/`` is opened."""

    def __init__(self, settings: Settings, tier: str | None = None, cards: dict[str, Card] | None = None) -> None:
        self.settings = settings
        self.tier_name: str = tier or settings.config.tier
        self.tier: Tier = settings.tiers[self.tier_name]
        everything = load_cards(settings.root, settings.papers) if cards is None else cards
        self.cards = {name: card for name, card in everything.items() if self.tier_name in card.spec.tiers}
        if settings.papers and (absent := [name for name in settings.papers if name not in self.cards]):
            raise RematchError(f"config: papers: '{absent[0]}' has no entry for tier '{self.tier_name}' in its card")
        self._digests: dict[tuple[str, ...], str] = {}

    @property
    def results(self) -> Path:
        return self.settings.results(self.tier_name)

    @property
    def reports(self) -> Path:
        return self.settings.reports(self.tier_name)

    # -- expansion ------------------------------------------------------------------------------------------------

    def seeds(self, paper: str) -> int:
        """How many seeds the paper plays at this tier."""
        return self.cards[paper].at(self.tier_name).seeds or self.tier.seeds

    def match_limit(self, paper: str) -> float:
        """Seconds that one seed of one match may take."""
        return self.cards[paper].at(self.tier_name).match_limit_s or self.tier.match_limit_s

    def base_limit(self, paper: str) -> float:
        """Seconds that building one base may take."""
        return self.cards[paper].at(self.tier_name).base_limit_s or self.tier.base_limit_s

    def axes(self, paper: str) -> dict[str, AxisSpec]:
        """The axes that the tier plays, narrowed to the tier, in the card's order."""
        return self._axes[paper]

    @cached_property
    def _axes(self) -> dict[str, dict[str, AxisSpec]]:
        return {
            paper: {
                axis: card.axis(axis, self.tier_name) for axis in card.spec.axes if axis in card.at(self.tier_name).axes
            }
            for paper, card in self.cards.items()
        }

    @cached_property
    def _levels(self) -> dict[tuple[str, str], dict[str, LevelValue]]:
        """The levels of each axis by their text: Snakemake asks for every match several times."""
        return {
            (paper, axis): {level_text(value): value for value in spec.levels}
            for paper, axes in self._axes.items()
            for axis, spec in axes.items()
        }

    def matches(self, paper: str | None = None, axis: str | None = None) -> list[MatchRun]:
        """The match jobs of a paper (or all), on one axis (or all)."""
        found: list[MatchRun] = []
        for slug in [paper] if paper else self.cards:
            ranges = self._seed_ranges(slug)
            for name, spec in self.axes(slug).items():
                if axis in (None, name):
                    found += [
                        MatchRun(slug, name, contender, level, seeds)
                        for contender in spec.contenders
                        for level in spec.levels
                        for seeds in ranges
                    ]
        return found

    def bases(self, paper: str | None = None) -> list[BaseRun]:
        """Every base that the matches start from, those that they are built from included."""
        seen: dict[BaseRun, None] = {}
        queue = [base for match in self.matches(paper) for base in self.bases_of(match)]
        while queue:
            base = queue.pop()
            if base not in seen:
                seen[base] = None
                queue += self.needs_of(base)
        return sorted(seen, key=lambda b: (b.paper, b.base, b.share or 0.0, -1 if b.seed is None else b.seed))

    def share(self, match: MatchRun) -> float | None:
        """The share of the reference's FLOPs that a match may spend."""
        budget = self.axes(match.paper)[match.axis].budget
        if budget is None:
            return None
        return float(match.level if budget.share == "level" else budget.share)

    def bases_of(self, match: MatchRun) -> list[BaseRun]:
        """The bases of a match for all its seeds, the budget's reference included."""
        spec = self.cards[match.paper].spec.contenders[match.contender]
        budget = self.axes(match.paper)[match.axis].budget
        names = dict.fromkeys([*spec.bases, *([budget.reference] if budget else [])])
        share = self.share(match)
        runs = [self._base(match.paper, name, share, seed) for name in names for seed in match.seeds]
        return list(dict.fromkeys(runs))

    def needs_of(self, base: BaseRun) -> list[BaseRun]:
        """The bases that a base is built from."""
        needs = self.cards[base.paper].spec.bases[base.base].needs
        return [self._base(base.paper, name, base.share, base.seed) for name in needs]

    def base_for(self, paper: str, name: str, share: float | None, seed: int) -> BaseRun:
        """The copy of a base that a match with this share and seed starts from."""
        return self._base(paper, name, share, seed)

    def _base(self, paper: str, name: str, share: float | None, seed: int | None) -> BaseRun:
        spec = self.cards[paper].spec.bases[name]
        return BaseRun(paper, name, share if spec.per_share else None, seed if spec.seeded else None)

    def _seed_ranges(self, paper: str) -> list[tuple[int, ...]]:
        n = self.seeds(paper)
        size = n if self.tier.seeds_per_job == "all" else self.tier.seeds_per_job
        return [tuple(range(start, min(start + size, n))) for start in range(0, n, size)]

    # -- looking up by name ---------------------------------------------------------------------------------------

    def match(self, paper: str, axis: str, contender: str, level: str, seeds: str) -> MatchRun:
        """The match job that a path's parts name.

        Raises:
            RematchError: a part names nothing that this tier plays.
        """
        where = f"tier {self.tier_name}"
        if paper not in self.cards:
            raise unknown("paper", paper, self.cards, where)
        if axis not in self.axes(paper):
            raise unknown("axis", axis, self.axes(paper), f"{where}: {paper}")
        spec = self.axes(paper)[axis]
        if contender not in spec.contenders:
            raise unknown("contender", contender, spec.contenders, f"{where}: {paper}/{axis}")
        levels = self._levels[paper, axis]
        if level not in levels:
            raise unknown("level", level, levels, f"{where}: {paper}/{axis}")
        first, _, last = seeds.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(last or first) < int(first):
            raise RematchError(f"seeds: '{seeds}' must be one seed (3) or a range (0-4)")
        return MatchRun(paper, axis, contender, levels[level], tuple(range(int(first), int(last or first) + 1)))

    def base(self, paper: str, name: str, share: str, seed: str) -> BaseRun:
        """The base that a path's parts name."""
        if paper not in self.cards:
            raise unknown("paper", paper, self.cards, f"tier {self.tier_name}")
        if name not in self.cards[paper].spec.bases:
            raise unknown("base", name, self.cards[paper].spec.bases, self.cards[paper].where)
        return BaseRun(paper, name, None if share == ANY_SHARE else float(share), None if seed == SHARED else int(seed))

    # -- digests --------------------------------------------------------------------------------------------------

    def base_digest(self, paper: str, name: str) -> str:
        """Changes when the base must be built again: its entry, its source, what it is built from, the Python it runs on."""
        key = ("base", paper, name)
        if key not in self._digests:
            card = self.cards[paper]
            spec = card.spec.bases[name]
            self._digests[key] = digest_of(
                {
                    "use": spec.use,
                    "options": card.options("bases", name, self.tier_name),
                    "arena": card.at(self.tier_name).arena,
                    "source": self._source(spec.use.partition(":")[0]),
                    "needs": [self.base_digest(paper, need) for need in spec.needs],
                    "flags": [spec.seeded, spec.per_share],
                    "python": platform.python_version(),
                    "mirror": self.settings.config.hub_mirror,
                }
            )
        return self._digests[key]

    def match_digest(self, paper: str, axis: str, contender: str) -> str:
        """Changes when the match must be played again: its entries in the card, its sources, its bases."""
        key = ("match", paper, axis, contender)
        if key not in self._digests:
            card, spec = self.cards[paper], self.axes(paper)[axis]
            entry = card.spec.contenders[contender]
            names = dict.fromkeys([*entry.bases, *([spec.budget.reference] if spec.budget else [])])
            metrics = {name: card.spec.metrics[name] for name in card.metrics_of(spec, contender)}
            self._digests[key] = digest_of(
                {
                    "schema": SCHEMA_VERSION,
                    "use": entry.use,
                    "options": card.options("contenders", contender, self.tier_name),
                    "arena": card.at(self.tier_name).arena,
                    "source": self._source(card.arena_module, entry.use.partition(":")[0]),
                    "bases": {name: self.base_digest(paper, name) for name in names},
                    "budget": spec.budget.model_dump() if spec.budget else None,
                    "metrics": {name: [m.better, m.scale, m.unit, m.measured] for name, m in metrics.items()},
                }
            )
        return self._digests[key]

    def compute_digests(self) -> None:
        """Compute the digests of all matches and their bases now (they are kept)."""
        for paper in self.cards:
            for axis, spec in self.axes(paper).items():
                for contender in spec.contenders:
                    self.match_digest(paper, axis, contender)

    def report_digest(self, paper: str) -> str:
        """Changes when a paper's verdicts and pages must be computed again from the same records."""
        card = self.cards[paper]
        shown = card.spec.model_dump(exclude={"bases"})
        return digest_of([shown, card.reported, self._source(*REPORT_MODULES), self.settings.config.confidence,
                          self.tier.model_dump(), _templates(self.settings.root)])  # fmt: skip

    def _source(self, *modules: str) -> str:
        return _cached_source(self.settings.root, modules)

    def required(self, paper: str, scope: str = EVERY_AXIS) -> Iterator[MatchRun]:
        """The matches, on one axis or on all, whose failure makes the run end non-zero."""
        matches = self.matches(paper, None if scope == EVERY_AXIS else scope)
        return (match for match in matches if self.axes(paper)[match.axis].required)

    def describe(self) -> dict[str, Any]:
        """The plan in numbers."""
        return {
            "tier": self.tier_name,
            "papers": list(self.cards),
            "bases": len(self.bases()),
            "match_jobs": len(self.matches()),
            "matches": sum(len(m.seeds) for m in self.matches()),
        }


@cache
def _cached_source(root: Path, modules: tuple[str, ...]) -> str:
    return source_digest(root, *modules)


def _templates(root: Path) -> str:
    from rematch.source import file_digest

    folder = root / "reports" / "templates"
    return digest_of([(p.name, file_digest(p)) for p in sorted(folder.glob("*")) if p.is_file()])
