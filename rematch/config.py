"""The run's configuration: which tier, which papers, where results go. Checked before anything else."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rematch.card_models import TIERS, TierName
from rematch.errors import RematchError, unknown
from rematch.reading import Strict, parse_yaml, validate

MIN_FREE_BYTES = 200 * 2**20


class Config(Strict):
    """``config/config.yaml`` with the command line on top."""

    tier: TierName = "mini"
    papers: Literal["all"] | list[str] = "all"
    results: str = "results"
    reports: str = "reports"
    hub_mirror: str | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)


class Tier(Strict):
    """``config/tiers/<tier>.yaml``: what a tier sets for every paper; a card may narrow seeds and limits."""

    describe: str
    seeds: PositiveInt
    seeds_per_job: Literal["all"] | PositiveInt
    threads: PositiveInt = 1
    """Threads of a job. With more than one, jobs import what they need themselves (see ``rematch.warm``)."""
    verdicts: Literal["none", "direction", "size"]
    match_limit_s: PositiveFloat
    base_limit_s: PositiveFloat


@dataclass(frozen=True)
class Settings:
    """The checked configuration of one run."""

    root: Path
    config: Config
    tiers: dict[str, Tier]

    @property
    def papers(self) -> list[str] | None:
        return None if self.config.papers == "all" else list(self.config.papers)

    def results(self, tier: str) -> Path:
        """Where the tier's measurements go, absolute."""
        return self.root / self.config.results / tier

    def reports(self, tier: str) -> Path:
        """Where the tier's report goes, absolute."""
        return self.root / self.config.reports / tier


def load_settings(root: Path, overrides: dict[str, Any] | None = None) -> Settings:
    """Read and check ``config/``.

    Args:
        root: the repository.
        overrides: keys that replace those of ``config/config.yaml`` (Snakemake's ``--config``).

    Raises:
        RematchError: one line with file, key and what is allowed.
    """
    raw = parse_yaml(root / "config" / "config.yaml", root) or {}
    where = "config/config.yaml" if not overrides else "config/config.yaml with --config"
    merged = {**raw, **(overrides or {})}
    if isinstance(merged.get("papers"), str) and merged["papers"] != "all":
        merged["papers"] = [name for name in merged["papers"].replace(",", " ").split() if name]
    if merged.get("tier", "mini") not in TIERS:
        raise unknown("tier", merged["tier"], TIERS, f"{where}: tier")
    config: Config = validate(Config, merged, where)
    tiers = {
        name: validate(Tier, parse_yaml(root / "config" / "tiers" / f"{name}.yaml", root), f"config/tiers/{name}.yaml")
        for name in TIERS
    }
    if config.hub_mirror is not None and not Path(config.hub_mirror).is_dir():
        raise RematchError(f"{where}: hub_mirror: no folder '{config.hub_mirror}'; give a folder or null")
    return Settings(root=root, config=config, tiers=tiers)


def check_writable(settings: Settings, tier: str) -> None:
    """Refuse a results or reports folder that cannot be written, or a disk that is nearly full, before any job."""
    for key, folder in (("results", settings.results(tier)), ("reports", settings.reports(tier))):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise RematchError(f"config: {key}: '{existing}' is not a folder that can be written; give another one")
        free = shutil.disk_usage(existing).free
        if free < MIN_FREE_BYTES:
            raise RematchError(
                f"config: {key}: only {free >> 20} MiB free at '{existing}'; at least {MIN_FREE_BYTES >> 20} are needed"
            )
