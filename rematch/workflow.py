"""What the Snakefile needs from the engine: paths, inputs and parameters of its rules. Light: no torch, no pandas."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rematch.config import Settings, check_writable, load_settings
from rematch.errors import RematchError
from rematch.jobs import CONFIG, RUN
from rematch.plan import EVERY_AXIS, BaseRun, MatchRun, Plan

SMOKE = "smoke"


class Workflow:
    """The plan of every tier that a target may ask for, as Snakemake sees it: paths relative to the repository.

    Raises:
        RematchError: config or cards are wrong, or an output folder cannot be written.
    """

    def __init__(self, root: Path, overrides: dict[str, Any]) -> None:
        self.settings: Settings = load_settings(root, overrides)
        self.tier = self.settings.config.tier
        self._plans: dict[str, Plan] = {self.tier: Plan(self.settings, self.tier)}
        check_writable(self.settings, self.tier)
        self.results, self.reports = self.settings.config.results, self.settings.config.reports
        self._started = time.time()
        self._server: Any = None
        os.environ[CONFIG] = json.dumps(self.settings.config.model_dump())
        # Rules call `python3`: the one that runs Snakemake, also where its environment was not activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

    @property
    def papers(self) -> list[str]:
        return list(self.plan(self.tier).cards)

    def axes(self, paper: str) -> list[str]:
        return list(self.plan(self.tier).axes(paper))

    def plan(self, tier: str) -> Plan:
        """The plan of a tier, made when first asked for."""
        if tier not in self._plans:
            everything = Settings(
                self.settings.root, self.settings.config.model_copy(update={"tier": tier}), self.settings.tiers
            )
            self._plans[tier] = Plan(everything, tier)
        return self._plans[tier]

    # -- paths ----------------------------------------------------------------------------------------------------

    def page(self, tier: str, paper: str) -> str:
        return f"{self.reports}/{tier}/{paper}.html"

    def index(self, tier: str) -> str:
        return f"{self.reports}/{tier}/index.html"

    def claims(self, tier: str, paper: str) -> str:
        return f"{self.results}/{tier}/papers/{paper}/claims.json"

    def checked(self, tier: str, paper: str, scope: str = EVERY_AXIS) -> str:
        return f"{self.results}/{tier}/papers/{paper}/checks/{scope}"

    def final(self, tier: str) -> list[str]:
        """Everything that a whole tier is to leave: the index, and what each paper is to leave."""
        return [self.index(tier), *[path for paper in self.plan(tier).cards for path in self.whole_paper(tier, paper)]]

    def whole_paper(self, tier: str, paper: str) -> list[str]:
        """Everything that a paper is to leave: its page, its records, and the mark that no required match failed."""
        return [self.page(tier, paper), self.checked(tier, paper), *self.records(tier, paper)]

    def whole_axis(self, tier: str, paper: str, axis: str) -> list[str]:
        """What one axis of a paper is to leave: its records, and the mark that no required match failed."""
        return [self.checked(tier, paper, axis), *self.records(tier, paper, axis)]

    def records(self, tier: str, paper: str, axis: str | None = None) -> list[str]:
        """Records and items. Targets ask for them too, or Snakemake would not miss those that somebody deletes."""
        matches = self.plan(tier).matches(paper, axis)
        return [self._at(tier, path) for match in matches for path in (match.path, match.items_path)]

    # -- inputs and parameters of rules ---------------------------------------------------------------------------

    def threads(self, wildcards: Any) -> int:
        return self.settings.tiers[wildcards.tier].threads

    def base_needs(self, wildcards: Any) -> list[str]:
        plan, base = self._base(wildcards)
        return [self._at(plan.tier_name, need.path) for need in plan.needs_of(base)]

    def base_digest(self, wildcards: Any) -> str:
        plan, base = self._base(wildcards)
        return plan.base_digest(base.paper, base.base)

    def match_bases(self, wildcards: Any) -> list[str]:
        plan, match = self._match(wildcards)
        return [self._at(plan.tier_name, base.path) for base in plan.bases_of(match)]

    def match_digest(self, wildcards: Any) -> str:
        plan, match = self._match(wildcards)
        return plan.match_digest(match.paper, match.axis, match.contender)

    def paper_records(self, wildcards: Any) -> list[str]:
        return self.records(wildcards.tier, wildcards.paper)

    def checked_after(self, wildcards: Any) -> list[str]:
        """What must be there before a check: the records of the axis, or for all axes the page as well."""
        if wildcards.scope != EVERY_AXIS:
            return self.records(wildcards.tier, wildcards.paper, wildcards.scope)
        return [*self.paper_records(wildcards), self.page(wildcards.tier, wildcards.paper)]

    def report_digest(self, wildcards: Any) -> str:
        return self.plan(wildcards.tier).report_digest(wildcards.paper)

    def all_claims(self, wildcards: Any) -> list[str]:
        return [self.claims(wildcards.tier, paper) for paper in self.plan(wildcards.tier).cards]

    def all_report_digests(self, wildcards: Any) -> list[str]:
        plan = self.plan(wildcards.tier)
        return [plan.report_digest(paper) for paper in plan.cards]

    # -- the life of a run ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Before the first job: write the provenance of the run and start the warm server."""
        from rematch.provenance import command_line, new_run_id, write_manifest
        from rematch.warm import Server

        os.environ[RUN] = new_run_id()
        for tier in self._plans:
            config = self.settings.config.model_dump() | {"tier": tier, "threads": self.plan(tier).tier.threads}
            write_manifest(self.settings.results(tier), os.environ[RUN], self.settings.root, config, command_line())
        if sys.platform == "linux" and self.plan(self.tier).tier.threads == 1:
            self._server = Server(self.settings.root)

    def stop(self) -> None:
        """After the last job: end the warm server and write what the run cost.

        Snakemake looks again for jobs a second after it started some: its timer would hold the process for that long.
        """
        from rematch.provenance import ACCOUNT
        from rematch.records import write_text
        from rematch.warm import account

        if self._server is not None:
            self._server.stop()
        for tier in self._plans:
            path = self.settings.results(tier) / "runs" / os.environ[RUN] / ACCOUNT
            write_text(json.dumps(account(self._started)) + "\n", path)
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.cancel()

    def check_records(self, tier: str) -> None:
        """Refuse to plan over records that are not whole.

        Raises:
            RematchError: names the file and what to do.
        """
        from rematch.records import looks_whole

        plan = self.plan(tier)
        for match in plan.matches():
            path = plan.results / match.path
            if path.is_file() and not looks_whole(path):
                shown = path.relative_to(self.settings.root) if path.is_relative_to(self.settings.root) else path
                raise RematchError(
                    f"{shown}: not a whole Parquet file; delete it and run again: only it is played again"
                )

    def _base(self, wildcards: Any) -> tuple[Plan, BaseRun]:
        plan = self.plan(wildcards.tier)
        return plan, plan.base(wildcards.paper, wildcards.base, wildcards.share, wildcards.seed)

    def _match(self, wildcards: Any) -> tuple[Plan, MatchRun]:
        plan = self.plan(wildcards.tier)
        return plan, plan.match(wildcards.paper, wildcards.axis, wildcards.contender, wildcards.level, wildcards.seeds)

    def _at(self, tier: str, path: str) -> str:
        return f"{self.results}/{tier}/{path}"
