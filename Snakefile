"""The way in. Targets: all, smoke, one per paper, one per paper and axis (simba_flops_matched)."""

import sys
from pathlib import Path

sys.path.insert(0, str(workflow.basedir))

from rematch.errors import RematchError
from rematch.lock import join_runs
from rematch.workflow import SMOKE, Workflow

try:
    rematch = Workflow(Path(workflow.basedir), config)
    rematch.check_records(rematch.tier)
except RematchError as error:
    raise SystemExit(f"rematch: {error}") from None

# Not where Snakemake runs itself again for one job of a cluster.
if workflow.is_main_process:
    alive = join_runs(Path(".snakemake"))


wildcard_constraints:
    tier="smoke|mini|real|paper",
    paper="[a-z0-9_]+",
    base="[a-z0-9_]+",
    axis="[a-z_]+",
    scope="[a-z_]+",
    contender="[a-z0-9_]+",
    level="[^/]+",
    share="[^/]+",
    seed="[0-9]+|shared",
    seeds="[0-9]+(-[0-9]+)?",


localrules:
    all,
    smoke,


onstart:
    rematch.start()


onsuccess:
    rematch.stop()


onerror:
    rematch.stop()


rule all:
    default_target: True
    input:
        rematch.final(rematch.tier),


rule smoke:
    input:
        lambda wildcards: rematch.final(SMOKE),


include: "workflows/common.smk"
