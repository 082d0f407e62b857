"""Model and dataset ids, resolved against a local mirror of the hub before the hub is asked.

A mirror is a folder: ``DIR/models/<org>/<name>`` and ``DIR/datasets/<org>/<name>`` (compute nodes often have no
internet). ``rematch mirror`` fills one on a machine that has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rematch.errors import RematchError


@dataclass(frozen=True)
class Hub:
    """Where ids lead: into the mirror, if one is configured, else to the hub itself."""

    mirror: Path | None = None

    def model_path(self, repo_id: str) -> str:
        """A folder of the mirror, or the id itself for the hub.

        Raises:
            RematchError: a mirror is configured and does not hold the model.
        """
        return self._resolve("models", repo_id)

    def dataset_path(self, repo_id: str) -> str:
        """A folder of the mirror, or the id itself for the hub.

        Raises:
            RematchError: a mirror is configured and does not hold the dataset.
        """
        return self._resolve("datasets", repo_id)

    def _resolve(self, kind: str, repo_id: str) -> str:
        if self.mirror is None:
            return repo_id
        folder = self.mirror / kind / repo_id
        if not folder.is_dir():
            raise RematchError(
                f"hub_mirror: no '{kind}/{repo_id}' in {self.mirror}; fill it with: rematch mirror {self.mirror} "
                f"--{kind[:-1]} {repo_id}"
            )
        return str(folder)


def fill_mirror(mirror: Path, models: list[str], datasets: list[str]) -> list[Path]:
    """Download models and datasets from the hub into a mirror; returns the folders. Needs internet.

    Args:
        models, datasets: ids, ``org/name`` or ``org/name@revision``.
    """
    from huggingface_hub import snapshot_download

    wanted = [("models", "model", m) for m in models] + [("datasets", "dataset", d) for d in datasets]
    folders = []
    for kind, repo_type, name in wanted:
        repo_id, _, revision = name.partition("@")
        folder = mirror / kind / repo_id
        snapshot_download(repo_id, repo_type=repo_type, revision=revision or None, local_dir=folder)
        folders.append(folder)
    return folders
