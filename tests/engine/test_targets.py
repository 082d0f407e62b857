"""The targets that render: all, a paper, smoke. Records are played once and rendered as often as one likes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rendered_once(played_once, tmp_path_factory):
    """The played toy repository with its report. Shared: look, do not touch."""
    repository = played_once.copy(tmp_path_factory.mktemp("rendered") / "toy")
    done = repository.snakemake("all")
    assert done.code == 0, done.text
    assert done.jobs() == ["check all", "index", "judge", "page"], "what was played is not played again"
    return repository


@pytest.fixture
def rendered(rendered_once, tmp_path):
    """A copy, to be changed."""
    return rendered_once.copy(tmp_path / "toy")


def planned(repository, target="all"):
    done = repository.snakemake("--dry-run", target)
    assert done.code == 0, done.text
    return done.jobs()


def test_the_report_is_there(rendered_once):
    assert (rendered_once.path / "reports/mini/index.html").is_file()
    assert (rendered_once.path / "reports/mini/toy.html").is_file()


def test_a_second_run_has_nothing_to_do(rendered_once):
    for target in ("all", "toy"):
        assert "Nothing to be done" in rendered_once.snakemake(target).text


def test_a_deleted_page_is_rendered_again_and_nothing_else(rendered):
    (rendered.path / "reports/mini/toy.html").unlink()
    assert planned(rendered, "toy") == ["check all", "page"]


def test_an_edited_claim_is_judged_and_rendered_and_nothing_is_played(rendered):
    rendered.edit("workflows/toy/card.yaml", "margin: 0.01", "margin: 0.02")
    done = rendered.snakemake("all")
    assert done.code == 0, done.text
    assert done.jobs() == ["check all", "index", "judge", "page"]


def test_records_that_somebody_deleted_are_played_and_judged_again(rendered):
    for file in (rendered.path / "results/mini/records/toy/flops_matched/good/0.5").iterdir():
        file.unlink()
    assert planned(rendered) == ["check all", "index", "judge", "page", "play good 0.5 0-4"]


def test_an_edited_method_reaches_the_page(rendered):
    before = (rendered.path / "reports/mini/toy.html").read_bytes()
    rendered.edit("methods/good.py", "gain: float = 0.1", "gain: float = 0.2")
    assert rendered.snakemake("all").code == 0
    assert (rendered.path / "reports/mini/toy.html").read_bytes() != before


def test_smoke_is_a_tier_of_its_own(rendered):
    jobs = planned(rendered, "smoke")
    assert [job for job in jobs if job.startswith("play")] == [
        "play good 0.5 0-1", "play good 1.0 0-1", "play plain 0.5 0-1", "play plain 1.0 0-1",
    ]  # fmt: skip
    assert planned(rendered, "all") == []
