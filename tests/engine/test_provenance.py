"""What a run leaves about itself."""

from __future__ import annotations

import json

from rematch.provenance import describe, new_run_id, read_accounts, read_manifests

SECRET = "not-for-the-record-4711"


def manifests(repository):
    folders = sorted((repository.path / "results/mini/runs").iterdir())
    return [json.loads((folder / "provenance.json").read_text(encoding="utf-8")) for folder in folders]


def test_every_record_leads_to_the_manifest_of_its_run(played_once):
    (manifest,) = manifests(played_once)
    assert set(played_once.records()["run"]) == {manifest["run"]}


def test_a_manifest_says_what_was_run_where(played_once):
    (manifest,) = manifests(played_once)
    assert manifest["command"] == "snakemake --cores 2 toy_flops_matched"
    assert manifest["config"]["tier"] == "mini"
    assert manifest["cores"] >= 1
    assert manifest["cpu"]
    assert manifest["threads_per_job"] == "1"
    assert {"snakemake", "pyarrow", "torch"} <= set(manifest["packages"])
    assert manifest["commit"] == "", "the toy repository is under no version control"


def test_no_environment_value_and_no_key_gets_into_any_file(played):
    played.edit("workflows/toy/card.yaml", "margin: 0.01", "margin: 0.02")
    played.card(lambda card: card["contenders"]["good"].update(options={"gain": 0.3}))
    done = played.snakemake(OPENAI_API_KEY=SECRET, HF_TOKEN=SECRET)
    assert done.code == 0
    for file in played.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_a_run_accounts_for_what_it_cost(played_once):
    (account,) = read_accounts(played_once.path / "results/mini").values()
    assert account["cpu_s"] > 0
    assert 0 < account["wall_s"] < 600


def test_every_job_says_what_it_cost(played_once):
    folder = played_once.path / "results/mini/logs"
    jobs = [json.loads(file.read_text(encoding="utf-8")) for file in folder.rglob("*.job.json")]
    assert sorted(job["kind"] for job in jobs) == ["base"] * 5 + ["match"] * 4
    assert all(job["wall_s"] > 0 and job["work_cpu_s"] > 0 and job["overhead_cpu_s"] > 0 for job in jobs)


def test_run_ids_sort_by_time_and_differ():
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert [i.rpartition("-")[0] for i in ids] == sorted(i.rpartition("-")[0] for i in ids)


def test_manifests_are_read_in_the_order_of_the_runs(tmp_path):
    for run in ("20260102T000000-aaaa", "20260101T000000-ffff"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "provenance.json").write_text(json.dumps({"run": run}))
    assert list(read_manifests(tmp_path)) == ["20260101T000000-ffff", "20260102T000000-aaaa"]


def test_a_machine_without_git_gets_a_manifest_too(toy, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = describe(toy.path, "a-run", {}, ["snakemake"])
    assert found["commit"] == ""
    assert found["dirty"] is False
    assert found["gpus"] == []
