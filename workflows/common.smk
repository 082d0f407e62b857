"""The rules that all papers share: build a base, play a match, judge a paper, render its page, check what was required."""

BASE = "bases/{paper}/{base}/{share}/{seed}"
MATCH = "records/{paper}/{axis}/{contender}/{level}/{seeds}"
PAPER = "papers/{paper}"
RESULTS = f"{rematch.results}/{{tier}}"
REPORTS = f"{rematch.reports}/{{tier}}"


rule base:
    input:
        rematch.base_needs,
    output:
        f"{RESULTS}/{BASE}/base.json",
    log:
        f"{RESULTS}/logs/{BASE}.log",
    threads: rematch.threads
    params:
        digest=rematch.base_digest,
    shell:
        "python3 -m rematch base --tier {wildcards.tier} {wildcards.paper} {wildcards.base} {wildcards.share} "
        "{wildcards.seed}"


rule play:
    input:
        rematch.match_bases,
    output:
        records=f"{RESULTS}/{MATCH}.parquet",
        scores=f"{RESULTS}/{MATCH}.items.parquet",
    log:
        f"{RESULTS}/logs/{MATCH}.log",
    threads: rematch.threads
    params:
        digest=rematch.match_digest,
    shell:
        "python3 -m rematch play --tier {wildcards.tier} {wildcards.paper} {wildcards.axis} "
        "{wildcards.contender} {wildcards.level} {wildcards.seeds}"


rule judge:
    input:
        rematch.paper_records,
    output:
        claims=f"{RESULTS}/{PAPER}/claims.json",
        records=f"{RESULTS}/{PAPER}/records.parquet",
        scores=f"{RESULTS}/{PAPER}/items.parquet",
        exhibits=f"{RESULTS}/{PAPER}/exhibits.json",
    log:
        f"{RESULTS}/logs/{PAPER}/judge.log",
    params:
        digest=rematch.report_digest,
    shell:
        "python3 -m rematch judge --tier {wildcards.tier} {wildcards.paper} 2> {log}"


rule page:
    input:
        f"{RESULTS}/{PAPER}/claims.json",
    output:
        f"{REPORTS}/{{paper}}.html",
    log:
        f"{RESULTS}/logs/{PAPER}/page.log",
    params:
        digest=rematch.report_digest,
    shell:
        "python3 -m rematch page --tier {wildcards.tier} {wildcards.paper} 2> {log}"


rule index:
    input:
        rematch.all_claims,
    output:
        f"{REPORTS}/index.html",
    log:
        f"{RESULTS}/logs/index.log",
    params:
        digest=rematch.all_report_digests,
    shell:
        "python3 -m rematch index --tier {wildcards.tier} 2> {log}"


# A failed match is a row in a table, and no reason to stop; a failed *required* match makes the whole run end non-zero.
# The report comes first: it is complete, with `failed` where a number would be.
rule check:
    input:
        rematch.checked_after,
    output:
        f"{RESULTS}/{PAPER}/checks/{{scope}}",
    log:
        f"{RESULTS}/logs/{PAPER}/check_{{scope}}.log",
    params:
        digest=rematch.report_digest,
    shell:
        "python3 -m rematch check --tier {wildcards.tier} {wildcards.paper} {wildcards.scope} 2> {log}"


for paper in rematch.papers:

    rule:
        name:
            paper
        input:
            rematch.whole_paper(rematch.tier, paper),

    for axis in rematch.axes(paper):

        rule:
            name:
                f"{paper}_{axis}"
            input:
                rematch.whole_axis(rematch.tier, paper, axis),
