"""From cards and a tier to bases, matches and digests."""

from __future__ import annotations

import pytest

from rematch.config import load_settings
from rematch.errors import RematchError
from rematch.plan import Plan


def plan_of(repository, tier="mini", **config):
    return Plan(load_settings(repository.path, config), tier)


def digests(plan):
    matches = {name: plan.match_digest("toy", "flops_matched", name) for name in plan.cards["toy"].spec.contenders}
    return matches | {"ground": plan.base_digest("toy", "ground")}


def changed(repository, change, tier="mini"):
    """The contenders and bases whose digest a change of the card changes."""
    before = digests(plan_of(repository, tier))
    repository.card(change)
    after = digests(plan_of(repository, tier))
    return {name for name in after if after[name] != before.get(name)}


def test_one_job_plays_all_seeds(toy):
    matches = plan_of(toy).matches()
    assert len(matches) == 4  # two contenders at two levels
    assert {match.seeds for match in matches} == {(0, 1, 2, 3, 4)}
    assert matches[0].path == "records/toy/flops_matched/good/0.5/0-4.parquet"
    assert plan_of(toy).describe() == {"tier": "mini", "papers": ["toy"], "bases": 5, "match_jobs": 4, "matches": 20}


def test_at_the_paper_tier_a_job_is_one_seed(toy):
    toy.card(lambda card: card["tiers"].update(paper={"axes": {"flops_matched": {"levels": [1.0]}}}))
    matches = plan_of(toy, "paper").matches()
    assert [(m.contender, m.seeds) for m in matches] == [(c, (s,)) for c in ("good", "plain") for s in range(3)]
    assert matches[1].path == "records/toy/flops_matched/good/1.0/1.parquet"


def test_seeds_that_do_not_divide_evenly_are_all_played(toy):
    toy.edit("config/tiers/mini.yaml", "seeds_per_job: all", "seeds_per_job: 2")
    assert [m.seeds_text for m in plan_of(toy).matches()[:3]] == ["0-1", "2-3", "4"]


def test_a_tier_narrows_an_axis(toy):
    narrow = {"levels": [1.0], "contenders": ["plain"], "metrics": ["accuracy"], "tolerance": 0.1}
    toy.card(lambda card: card["tiers"]["smoke"].update(axes={"flops_matched": narrow}))
    axis = plan_of(toy, "smoke").axes("toy")["flops_matched"]
    assert (axis.levels, axis.contenders, axis.metrics, axis.budget.tolerance) == ([1.0], ["plain"], ["accuracy"], 0.1)
    assert len(plan_of(toy, "mini").matches()) == 4


def test_a_base_sized_per_share_is_built_for_every_level(toy):
    toy.card(lambda card: card["bases"]["ground"].update(per_share=True))
    plan = plan_of(toy)
    assert len(plan.bases()) == 10  # two levels, five seeds
    match = plan.match("toy", "flops_matched", "good", "0.5", "0-4")
    assert [base.path for base in plan.bases_of(match)][:2] == [
        "bases/toy/ground/0.5/0/base.json", "bases/toy/ground/0.5/1/base.json",
    ]  # fmt: skip


def test_a_base_without_seed_is_built_once(toy):
    toy.card(lambda card: card["bases"]["ground"].update(seeded=False))
    assert [base.path for base in plan_of(toy).bases()] == ["bases/toy/ground/any/shared/base.json"]


def test_bases_of_bases_are_built_too(toy):
    def change(card):
        card["bases"]["corpus"] = {"use": "workflows.toy.arena:Ground", "seeded": False}
        card["bases"]["ground"]["needs"] = ["corpus"]

    toy.card(change)
    plan = plan_of(toy)
    assert len(plan.bases()) == 6
    assert [need.path for need in plan.needs_of(plan.bases()[-1])] == ["bases/toy/corpus/any/shared/base.json"]


def test_paths_and_plans_agree(toy):
    plan = plan_of(toy)
    for match in plan.matches():
        assert plan.match(*match.path.removeprefix("records/").removesuffix(".parquet").split("/")) == match
    for base in plan.bases():
        assert plan.base(*base.path.removeprefix("bases/").removesuffix("/base.json").split("/")) == base


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("tyo", "flops_matched", "good", "0.5", "0-4"), "tier mini: unknown paper 'tyo'; allowed: toy."),
        (("toy", "ood", "good", "0.5", "0-4"), "tier mini: toy: unknown axis 'ood'; allowed: flops_matched."),
        (("toy", "flops_matched", "god", "0.5", "0-4"), "tier mini: toy/flops_matched: unknown contender 'god'; allowed: "),
        (("toy", "flops_matched", "good", "0.7", "0-4"), "tier mini: toy/flops_matched: unknown level '0.7'; allowed: 0.5, 1.0."),
        (("toy", "flops_matched", "good", "0.5", "4-0"), "seeds: '4-0' must be one seed (3) or a range (0-4)"),
        (("toy", "flops_matched", "good", "0.5", "all"), "seeds: 'all' must be one seed (3) or a range (0-4)"),
    ],
)  # fmt: skip
def test_a_match_that_is_not_planned(toy, parts, message):
    with pytest.raises(RematchError) as caught:
        plan_of(toy).match(*parts)
    assert str(caught.value).startswith(message)


# -- digests --------------------------------------------------------------------------------------------------------------


def axis(**values):
    return lambda card: card["axes"]["flops_matched"].update(**values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda card: card["contenders"]["good"].update(options={"gain": 0.2}), {"good"}),
        (lambda card: card["contenders"]["good"].update(label="Better"), set()),
        (lambda card: card["contenders"]["good"].update(describe="What it does."), set()),
        (lambda card: card["contenders"]["good"].update(use="baselines.plain:Plain"), {"good"}),
        (lambda card: card["bases"]["ground"].update(options={"scale": 2.0}), {"good", "plain", "ground"}),
        (lambda card: card["tiers"]["mini"].update(arena={"n_items": 30}), {"good", "plain", "ground"}),
        (lambda card: card["tiers"]["smoke"].update(arena={"n_items": 30}), set()),
        (lambda card: card["tiers"]["mini"].update(seeds=9, match_limit_s=1, cost_hint_s={"good": 1}), set()),
        (lambda card: card["metrics"]["accuracy"].update(better="lower"), {"good", "plain"}),
        (lambda card: card["metrics"]["accuracy"].update(label="Share of right answers"), set()),
        (lambda card: card["claims"]["C1"].update(margin=0.5), set()),
        (axis(levels=[0.5, 1.0, 2.0]), set()),
        (axis(label="At equal cost", required=False), set()),
        (axis(budget={"reference": "ground", "share": "level", "tolerance": 0.5}), {"good", "plain"}),
        (axis(metrics=["accuracy", "perplexity", "seconds_per_item"]), None),
    ],
)  # fmt: skip
def test_digests_change_where_a_result_could_and_nowhere_else(toy, change, expected):
    if expected is None:  # a metric more is measured by everybody
        toy.card(lambda card: card["metrics"].update(seconds_per_item={"label": "Seconds", "better": "lower"}))
        expected = {"good", "plain"}
    assert changed(toy, change) == expected


def test_another_mirror_is_another_source_of_data(toy, tmp_path):
    assert digests(plan_of(toy)) != digests(plan_of(toy, hub_mirror=str(tmp_path)))


def test_digests_do_not_depend_on_where_the_repository_lies(toy, played_once):
    assert digests(plan_of(toy)) == digests(plan_of(played_once))


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card["claims"]["C1"].update(margin=0.5),
        lambda card: card["contenders"]["good"].update(label="Better"),
        lambda card: card["tables"][0].update(title="Another title"),
        lambda card: card["metrics"]["accuracy"].update(unit="%"),
    ],
)
def test_what_a_page_shows_is_in_the_digest_of_the_report(toy, change):
    before = plan_of(toy).report_digest("toy")
    toy.card(change)
    assert plan_of(toy).report_digest("toy") != before


@pytest.mark.parametrize("file", ["reported", "template", "confidence"])
def test_the_digest_of_the_report_covers_what_lies_beside_the_card(toy, file):
    before, config = plan_of(toy).report_digest("toy"), {}
    if file == "reported":
        toy.edit(
            "workflows/toy/reported.csv", "source\n", "source\ntoy,1,flops_matched,d,s,Good,accuracy,0.7,,true,p. 3\n"
        )
    elif file == "template":
        (toy.path / "reports/templates").mkdir(parents=True, exist_ok=True)
        (toy.path / "reports/templates/another.html").write_text("<p>")
    else:
        config = {"confidence": 0.9}
    assert plan_of(toy, **config).report_digest("toy") != before
