"""The report: what its pages hold, that they load nothing, and that a rerun gives the same bytes."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import synthetic

from rematch.plots import PALETTE, Figure, draw_all
from rematch.report import (
    PAGE_COLOURS,
    TEXT_SHOWN,
    VERDICTS,
    Board,
    PaperResults,
    contender_exhibits,
    match_groups,
    readable,
    render,
    render_index,
    trouble_table,
)
from rematch.schema import COLUMNS
from rematch.summary import fold

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """A page's links, ids and balance of tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for name in ("href", "src"):
            if found.get(name):
                self.links.append(str(found[name]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, self.getpos()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> PaperResults:
    return synthetic.make_results(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def out(results: PaperResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "mini"
    render([results], folder, tier="mini")
    return folder


@pytest.fixture(scope="module", params=["index.html", "simba.html"])
def page(out: Path, request: pytest.FixtureRequest) -> Page:
    return Page(out / request.param)


def test_files(out: Path, results: PaperResults) -> None:
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for table in ("claims", "pairs", "perplexity-at-equal-flops", "costs-flops-matched", "costs-jobs"):
        assert {f"tables/simba/{table}.{kind}" for kind in ("csv", "md", "tex")} <= written
    assert len(list(out.glob("plots/simba/*.svg"))) == len(results.card.spec.plots)
    assert not [name for name in written if "tmp" in name]


def test_html_is_well_formed_and_loads_nothing(page: Page) -> None:
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"<script|@import|url\((?!#)", page.text)
    assert {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "video", "audio"} == set()
    for link in page.links:
        assert not re.match(r"(?!data:,)[a-z]+:|//", link), link


def test_every_link_leads_somewhere(page: Page, out: Path) -> None:
    for link in page.links:
        target, _, fragment = link.partition("#")
        if target == "data:,":
            continue
        assert not target or (out / target).is_file(), link
        if fragment:
            ids = page.ids if not target else Page(out / target).ids
            assert fragment in ids, link


def test_accessible_structure(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert {"main", "header", "footer", "nav"} <= set(tags)
    assert tags.count("h1") == 1
    first_link = next(attributes for tag, attributes in page.tags if tag == "a")
    assert first_link == {"class": "skip", "href": "#content"}
    assert tags.count("table") == tags.count("caption")
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(below <= above + 1 for above, below in pairwise(levels))


def test_every_number_leads_to_its_matches(out: Path, results: PaperResults) -> None:
    page = Page(out / "simba.html")
    cells = [link for link in page.links if link.startswith("#m-")]
    assert len(cells) >= 7 * 3 * 2 + 5 * 3 + 2 * 7
    for axis, entry in results.card.spec.axes.items():
        for contender in entry.contenders:
            for level in entry.levels:
                command = f"rematch audit simba/{axis}/{contender}/{level} --tier mini"
                assert command in page.text
    assert "ValueError: &lt;tokens&gt; &amp; pairs do not match" in page.text
    for fact in (synthetic.RUN, synthetic.DATA_HASH, "0123456789abcdef", "with uncommitted changes", "2.13.0"):
        assert fact in page.text


def test_matches_are_listed_seed_by_seed(results: PaperResults) -> None:
    groups = {g.anchor: g for _, found in match_groups(results, fold(results.records)) for g in found}
    assert len(groups) == 7 * 3 + 5 * 3 + 2
    group = groups["m-flops-matched-merge-0.7"]
    assert dict(group.facts)["Log"] == "logs/simba/flops_matched/merge/0.7.log"
    assert [row.label for row in group.table.rows] == ["0", "1", "2", "3", "4"]
    assert [row.cells[0].text for row in group.table.rows] == ["ok", "ok", "ok", "failed", "ok"]
    mine = results.records.query("axis == 'flops_matched' and contender == 'merge' and level == '0.7' and seed == 4")
    perplexity = float(mine.query("metric == 'perplexity'")["value"].iloc[0])
    assert group.table.rows[4].cells[group.table.columns.index("Perplexity")].text == f"{perplexity:.4f}"


def test_facts_that_differ_between_seeds_name_their_seeds(results: PaperResults) -> None:
    records = results.records.copy()
    records.loc[records["seed"] == 2, "data_hash"] = "another"
    groups = match_groups(replace(results, records=records), fold(records))
    expected = f"seed 0, 1, 3, 4: {synthetic.DATA_HASH}; seed 2: another"
    assert {dict(group.facts)["Data hash"] for _, found in groups for group in found} == {expected}


def test_everything_that_is_not_ok_is_listed(results: PaperResults) -> None:
    table = trouble_table(results.card, fold(results.records))
    found = {(row.label, row.cells[1].text): (row.cells[2].text, row.cells[3].text) for row in table.rows}
    assert found == {
        ("Token merging & pruning", "0.7"): ("3", "failed"),
        ("Depth pruning", "0.4"): ("0, 1, 2, 3, 4", "unmatched"),
        ("Transformer", "2048"): ("0, 1, 2, 3, 4", "timeout"),
    }


def test_text_from_records_is_escaped(page: Page) -> None:
    assert "<tokens>" not in page.text
    assert "A CPU <model>" not in page.text


def test_board_shows_every_claim_and_the_tally_adds_up(page: Page, results: PaperResults) -> None:
    for claim in results.claims:
        assert claim.statement in page.text
    counts = [int(n) for n in re.findall(r"</dt><dd>(\d+)</dd>", page.text)[:6]]
    assert counts == [sum(claim.verdict == word for claim in results.claims) for word in VERDICTS]
    assert "[+0.013, +0.035]" in page.text


def test_a_rerun_gives_the_same_bytes(results: PaperResults, out: Path, tmp_path: Path) -> None:
    for path in render([results], tmp_path, tier="mini"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path)).read_bytes(), path.name


def test_deviations_and_unplayed_views_are_named(tmp_path: Path) -> None:
    smoke = synthetic.make_results(tmp_path / "root", tier="smoke", seeds=2)
    render([smoke], tmp_path / "out", tier="smoke")
    for name in ("index.html", "simba.html"):
        assert "Shapes only, no verdicts." in (tmp_path / "out" / name).read_text(encoding="utf-8")
    text = (tmp_path / "out" / "simba.html").read_text(encoding="utf-8")
    assert "Not played at this tier: Perplexity on longer contexts; Influence by distance" in text
    assert smoke.card.spec.deviations[0].replace("'", "&#39;") in text


def test_the_banner_is_smokes_alone(out: Path) -> None:
    assert "Shapes only" not in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["all failed", "nothing was played"])
def test_a_failed_paper_still_renders(results: PaperResults, tmp_path: Path, how: str) -> None:
    records = results.records.drop_duplicates(["axis", "contender", "level", "seed"]).copy()
    records[["status", "reason", "metric", "slice"]] = ["failed", "out of memory", "", ""]
    if how == "nothing was played":
        records = pd.DataFrame([], columns=list(COLUMNS))
    failed = replace(results, records=records, claims=[], provenance=[], job_costs=results.job_costs.iloc[:0])
    render([failed], tmp_path, tier="mini")
    page = Page(tmp_path / "simba.html")
    assert "No verdicts: nothing was judged." in page.text
    assert "Nothing to draw" in page.text
    assert ("out of memory" in page.text) == (how == "all failed")
    assert not page.open
    assert not Page(tmp_path / "index.html").open


def test_an_index_over_no_paper(tmp_path: Path) -> None:
    (path,) = render_index([], tmp_path, tier="mini")
    assert "No paper has been judged" in path.read_text(encoding="utf-8")


# -- exhibits -------------------------------------------------------------------------------------------------------


def test_exhibits_are_the_first_seeds_and_spread_over_the_levels(results: PaperResults) -> None:
    found = contender_exhibits(results, fold(results.records))
    assert [(c.label, c.shown, c.total) for c in found] == [("Simba", 12, 24), ("Token merging & pruning", 12, 24)]
    for contender, middle in zip(found, (1, 0), strict=True):  # seed 0 of Simba's middle level brought none
        assert [cell.title for cell in contender.cells] == [
            f"Equal inference FLOPs, Share of the parent's FLOPs: {level}, seed {seed}"
            for level, seed in ((0.4, 0), (0.55, middle), (0.7, 0))
        ]
        for cell in contender.cells:
            assert [row["title"][:10] for row in cell.exhibits] == [f"Question {n}" for n in range(4)]
            assert {row["seed"] for row in cell.exhibits} == {int(cell.title[-1])}


@pytest.mark.parametrize(
    ("counts", "shown"),
    [((1, 8, 8), (1, 6, 5)), ((8, 0, 8), (6, 6)), ((2, 2, 2), (2, 2, 2)), ((8, 0, 0), (8,)), ((0, 0, 20), (12,))],
)
def test_no_level_crowds_out_another(results: PaperResults, counts: tuple[int, ...], shown: tuple[int, ...]) -> None:
    row = dict(results.exhibits[0])
    rows = [row | {"level": level} for level, n in zip(("0.4", "0.55", "0.7"), counts, strict=True) for _ in range(n)]
    (contender,) = contender_exhibits(replace(results, exhibits=rows), fold(results.records))
    assert tuple(len(cell.exhibits) for cell in contender.cells) == shown
    assert (contender.shown, contender.total) == (sum(shown), sum(counts))


def test_what_the_tier_does_not_play_is_not_shown(results: PaperResults) -> None:
    row = dict(results.exhibits[0])
    others = ({"level": "0.9"}, {"axis": "ablation"}, {"contender": "gone"}, {"axis": "memory_time", "level": "1024"})
    odd = replace(results, exhibits=[row | other for other in others])
    assert contender_exhibits(odd, fold(results.records)) == []
    assert contender_exhibits(results, fold(results.records.iloc[:0])) == []


def test_exhibits_of_an_unmatched_match_say_so(results: PaperResults) -> None:
    axis, contender, level = synthetic.UNMATCHED
    row = dict(results.exhibits[0]) | {"axis": axis, "contender": contender, "level": str(level), "seed": 2}
    (found,) = contender_exhibits(replace(results, exhibits=[row]), fold(results.records))
    assert [cell.title.rpartition(", ")[2] for cell in found.cells] == ["seed 2 (unmatched)"]


def test_exhibits_are_text_and_nothing_else(out: Path) -> None:
    page = Page(out / "simba.html")
    assert "<h4>Question 0 &amp; its &lt;b&gt;answer&lt;/b&gt;</h4>" in page.text
    assert "<dt>Attempt &lt;1&gt;</dt>" in page.text
    shown = "  &lt;/dd&gt;&lt;script&gt;alert(1)&lt;/script&gt; {{ card }} &amp;amp;\n\tso 19␛[0m\ntokenstokens"
    assert page.text.count(f'<dd dir="auto">{shown}') == 24
    assert page.text.count('<dd dir="auto"><em class="soft">empty</em></dd>') == 24
    assert not re.search(r"[^\t\n -~\x80-\U0010ffff]", page.text), "control characters are no HTML"


def test_exhibits_stand_between_tables_and_matches(out: Path) -> None:
    page = Page(out / "simba.html")
    order = [name for name in page.ids if name in ("tables", "exhibits", "matches")]
    assert order == ["tables", "exhibits", "matches"]
    assert '<li><a href="#exhibits">Examples</a></li>' in page.text
    assert '<span class="count">(12 of 24)</span>' in page.text
    section = page.text.partition('<h2 id="exhibits">Examples</h2>')[2].partition("</section>")[0]
    assert section.count("<dl") == section.count("<h4>") == 24
    assert [tag for tag, _ in re.findall(r"<(h[34])()", section)][:6] == ["h3", "h4", "h4", "h4", "h4", "h3"]


def test_exhibits_follow_the_theme(out: Path) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", (out / "simba.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    rules = re.findall(r"\.transcript[^{]*\{([^}]*)\}", style)
    colours = [value for rule in rules for value in re.findall(r"(?:background|color): ([^;]+)", rule)]
    assert colours == ["var(--wash)", "var(--soft)"]  # of both the contrast is tested, in both themes
    assert any("white-space: pre-wrap" in rule and "var(--mono)" in rule for rule in rules)


@pytest.mark.parametrize("title", ["Transcripts <of> answers", "Examples"])
def test_the_section_has_the_cards_title_and_is_not_there_without_exhibits(
    results: PaperResults, tmp_path: Path, title: str
) -> None:
    card = copy.copy(results.card)
    card.spec = card.spec.model_copy(update={"exhibits_title": title, "plots": []})
    few = [row for row in results.exhibits if row["seed"] == 0][:1]
    for exhibits in (few, []):
        render([replace(results, card=card, exhibits=exhibits)], tmp_path, tier="mini")
        text = Page(tmp_path / "simba.html").text
        assert text.count(title.replace("<", "&lt;").replace(">", "&gt;")) == 2 * len(exhibits)
        assert ('id="exhibits"' in text) == ('href="#exhibits"' in text) == bool(exhibits)
        assert ('<span class="count">(1)</span>' in text) == bool(exhibits)


def test_long_texts_are_cut_and_say_so() -> None:
    assert readable("x" * TEXT_SHOWN) == "x" * TEXT_SHOWN
    assert readable("x" * (TEXT_SHOWN + 7)) == "x" * TEXT_SHOWN + "\n[7 more characters]"
    assert readable("a\r\nb\rc\0\x7f\té") == "a\nb␍c␀␡\té"


# -- plots ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures(results: PaperResults) -> dict[str, Figure]:
    return {figure.name: figure for figure in draw_all(results.card, "mini", fold(results.records))}


def test_figures_draw_what_was_measured(figures: dict[str, Figure]) -> None:
    flops = figures["perplexity-against-flops"]
    # A failed seed leaves a point, an unmatched level does not: 7 contenders x 3 levels, less one.
    assert len(flops.table.rows) == 20
    for data in flops.table.data:
        assert data["low"] < data["mean"] < data["high"]
    shares = sorted(d["x"] / 2.4e9 for d in flops.table.data if d["contender"] == "simba")
    assert shares == pytest.approx([0.4, 0.55, 0.7], rel=0.01)
    kept = figures["tokens-kept-by-layer"]
    assert [d["x"] for d in kept.table.data if d["contender"] == "simba"] == list(range(8))
    assert "Simba: 1.000 at 0 to 0.100 at 7." in kept.alt
    assert {d["contender"] for d in kept.table.data} == {"simba", "uniform"}


def test_every_line_is_named_in_the_legend(results: PaperResults, figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        for drawing in (figure.wide, figure.narrow):
            texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
            for label in {row.label for row in figure.table.rows}:
                assert texts.count(label.replace("&", "&amp;")) == 1, (figure.name, label)


def test_bars_are_as_long_as_the_intervals(figures: dict[str, Figure]) -> None:
    figure = figures["influence-by-distance"]
    bars = [abs(float(y)) for y in re.findall(r'<line [^>]*y2="([^"]+)" [^>]*stroke-width="1.3"', figure.wide)]
    widths = [data["high"] - data["low"] for data in figure.table.data]
    ratios = [bar / width for bar, width in zip(sorted(bars), sorted(widths), strict=True)]
    assert min(ratios) > 0
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-6)


def test_an_unmatched_seed_moves_no_point(results: PaperResults, figures: dict[str, Figure]) -> None:
    records = results.records.copy()
    off = (records["contender"] == "simba") & (records["seed"] == 0)
    records.loc[off, ["status", "flops", "value"]] = ["unmatched", 1e15, 1e6]
    (changed, *_) = draw_all(results.card, "mini", fold(records))
    before = figures[changed.name].table.data[0]
    after = changed.table.data[0]
    assert after["n_seeds"] == before["n_seeds"] - 1
    assert after["x"] == pytest.approx(before["x"], rel=0.01)
    assert after["mean"] == pytest.approx(before["mean"], rel=0.05)


def test_one_seed_is_drawn_without_interval(results: PaperResults) -> None:
    one = results.records[results.records["seed"] == 0]
    for figure in draw_all(results.card, "mini", fold(one)):
        assert figure.wide
        assert {row.cells[2].text for row in figure.table.rows} == {"–"}


def test_forest_places_interval_margin_and_zero(results: PaperResults) -> None:
    board = {entry.claim.claim_id: entry.forest for entry in Board.of(results).entries}
    above, below, sized = board["C1"], board["C5"], board["C2"]
    assert above is not None
    assert below is not None
    assert sized is not None
    assert board["C7"] is None
    for forest in (above, below, sized):
        assert forest.interval is not None
        assert 0 <= forest.interval[0] < forest.estimate < forest.interval[1] <= forest.WIDTH
        assert forest.band[0] < forest.zero < forest.band[1]
        assert forest.zero == forest.WIDTH / 2
    assert above.interval is not None
    assert below.interval is not None
    assert above.interval[0] > above.zero
    assert below.interval[1] < below.zero
    assert sized.reported is not None
    assert above.reported is None


def test_a_drawing_follows_the_theme_and_its_file_stands_alone(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        used = set(re.findall(r"var\((--[\w-]+)\)", figure.wide))
        assert "--method" in used
        assert used <= set(PALETTE)
        assert "var(" not in figure.file
        assert PALETTE["--method"][0] in figure.file


def test_a_contender_looks_the_same_in_every_plot(figures: dict[str, Figure]) -> None:
    used = [set(re.findall(r"var\((--baseline-\d)\)", figure.wide)) for figure in figures.values()]
    # Only the dense Mamba (1) and the Transformer (4) play on longer contexts.
    assert used[0] == {f"--baseline-{i}" for i in range(1, 5)}
    assert used[2] == {"--baseline-1", "--baseline-4"}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_reaches_wcag_aa(theme: int) -> None:
    paper, wash = PAGE_COLOURS["--paper"][theme], PAGE_COLOURS["--wash"][theme]
    text = {**{n: PALETTE[n] for n in ("--ink", "--soft")}, **PAGE_COLOURS}
    for name in ("--ink", "--soft", "--link", "--good", "--partly", "--bad", "--open"):
        assert contrast(text[name][theme], paper) >= 4.5, name
        assert contrast(text[name][theme], wash) >= 4.5, name
    for name in PALETTE.keys() - {"--rule"}:
        assert contrast(PALETTE[name][theme], paper) >= 3, name
