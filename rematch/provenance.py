"""Where a record comes from: written once a run, before the first job, and referenced by every record.

Every field is best effort: a machine without git or GPU still gets a manifest.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rematch.records import schema_document, write_text

MANIFEST = "provenance.json"
ACCOUNT = "account.json"


def new_run_id() -> str:
    """A run id that sorts by time and is its own among runs of one second: ``20260131T120000-1f2e3d4c``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def write_manifest(results: Path, run: str, root: Path, config: dict[str, Any], command: list[str]) -> Path:
    """Write ``runs/<run>/provenance.json`` and the documentation of the schema beside the records."""
    path = results / "runs" / run / MANIFEST
    write_text(json.dumps(describe(root, run, config, command), indent=1) + "\n", path)
    write_text(schema_document(), results / "SCHEMA.md")
    return path


def describe(root: Path, run: str, config: dict[str, Any], command: list[str]) -> dict[str, Any]:
    """Command, commit, packages and machine of this run."""
    return {
        "run": run,
        "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": " ".join(command),
        "config": config,
        "commit": _git(root, "rev-parse", "HEAD"),
        "dirty": bool(_git(root, "status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpu_names(),
        "threads_per_job": str(config.get("threads", 1)),
        "packages": package_versions(root),
    }


def package_versions(root: Path) -> dict[str, str]:
    """Installed versions of what ``pyproject.toml`` depends on; a package that is absent is left out."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [d for extra in project.get("optional-dependencies", {}).values() for d in extra]
    names = sorted({re.split(r"[=<>~!;\[ ]", d, maxsplit=1)[0] for d in [*project["dependencies"], *optional]})
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The CPU's model name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match.group(1).strip() if match else platform.processor()


def gpu_names() -> list[str]:
    """The GPUs that the driver lists; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return listed.splitlines() if listed else []


def read_manifests(results: Path) -> dict[str, dict[str, Any]]:
    """The manifests of a tier's runs, by run id, oldest first."""
    paths = sorted((results / "runs").glob(f"*/{MANIFEST}"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def read_accounts(results: Path) -> dict[str, dict[str, float]]:
    """What each finished run cost in all (see ``rematch.warm.Account``), by run id, oldest first."""
    paths = sorted((results / "runs").glob(f"*/{ACCOUNT}"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _git(root: Path, *arguments: str) -> str:
    return _output(["git", "-C", str(root), *arguments]) or ""


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command_line() -> list[str]:
    """The command that was typed, without the interpreter's path."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
