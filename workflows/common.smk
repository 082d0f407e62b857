"""The rules that all papers share: build a base, play a match, judge a paper, render its page, check what was required."""

RECORDS = f"{rematch.results}/{{tier}}/records/{{paper}}/{{axis}}/{{contender}}/{{level}}/{{seeds}}"
BASE = f"{{tier}}/bases/{{paper}}/{{base}}/{{share}}/{{seed}}"
PAPER = f"{rematch.results}/{{tier}}/papers/{{paper}}"


rule base:
    input:
        rematch.base_needs,
    output:
        f"{rematch.results}/{BASE}/base.json",
    params:
        digest=rematch.base_digest,
    shell:
        "{sys.executable} -m rematch base --tier {wildcards.tier} {wildcards.paper} {wildcards.base} {wildcards.share} "
        "{wildcards.seed}"


rule play:
    input:
        rematch.match_bases,
    output:
        records=f"{RECORDS}.parquet",
        scores=f"{RECORDS}.items.parquet",
    params:
        digest=rematch.match_digest,
    shell:
        "{sys.executable} -m rematch play --tier {wildcards.tier} {wildcards.paper} {wildcards.axis} "
        "{wildcards.contender} {wildcards.level} {wildcards.seeds}"


rule judge:
    input:
        rematch.paper_records,
    output:
        claims=f"{PAPER}/claims.json",
        records=f"{PAPER}/records.parquet",
        scores=f"{PAPER}/items.parquet",
    params:
        digest=rematch.report_digest,
    shell:
        "{sys.executable} -m rematch judge --tier {wildcards.tier} {wildcards.paper}"


rule page:
    input:
        f"{PAPER}/claims.json",
    output:
        f"{rematch.reports}/{{tier}}/{{paper}}.html",
    params:
        digest=rematch.report_digest,
    shell:
        "{sys.executable} -m rematch page --tier {wildcards.tier} {wildcards.paper}"


rule index:
    input:
        rematch.all_claims,
    output:
        f"{rematch.reports}/{{tier}}/index.html",
    params:
        digest=rematch.all_report_digests,
    shell:
        "{sys.executable} -m rematch index --tier {wildcards.tier}"


# A failed match is a row in a table, and no reason to stop; a failed *required* match makes the whole run end non-zero.
# The report comes first: it is complete, with `failed` where a number would be.
rule check:
    input:
        rematch.checked_after,
    output:
        f"{PAPER}/checks/{{scope}}",
    params:
        digest=rematch.report_digest,
    shell:
        "{sys.executable} -m rematch check --tier {wildcards.tier} {wildcards.paper} {wildcards.scope}"


for paper in rematch.papers:

    rule:
        name:
            paper
        input:
            rematch.page(rematch.tier, paper),
            rematch.checked(rematch.tier, paper),

    for axis in rematch.axes(paper):

        rule:
            name:
                f"{paper}_{axis}"
            input:
                rematch.checked(rematch.tier, paper, axis),
