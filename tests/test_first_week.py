"""docs/first_week.md, command by command: from an export to a verified private run, and no patient in its files."""

import hashlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
from test_docs import ROOT, commands
from test_privacy import all_handlers, contents, found, streams  # noqa: F401

import train_downstream
import train_pretrain
from adaptor_hf import verify
from adaptor_hf.audit.__main__ import main as audit
from adaptor_hf.data.__main__ import main as data
from adaptor_hf.phantom.__main__ import main as phantom
from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.layout_pacs import RADIOLOGIST, case_of
from adaptor_hf.privacy import keys
from adaptor_hf.privacy import messages as private_messages
from adaptor_hf.privacy import mode as private_mode

COUNT, LANGUAGE = 48, "de"
MAINS = {
    "adaptor_hf.phantom": phantom, "adaptor_hf.data": data, "adaptor_hf.audit": audit,
    "adaptor_hf.verify": verify.main, "train_pretrain.py": train_pretrain.main,
    "train_downstream.py": train_downstream.main,
}  # fmt: skip
# What makes the run small: options that replace those of the page, or are added to them.
SMALL = {
    "adaptor_hf.phantom": ["--n", str(COUNT), "--image_size", "64", "--language", LANGUAGE],
    "train_pretrain.py": ["--aligner", '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}',
                          "--global_batch_size", "8", "--num_train_epochs", "2", "--use_cpu"],
    "train_downstream.py": ["--device", "cpu", "--num_resamples", "20", "--seeds", "0", "--controls", "tower"],
}  # fmt: skip


@pytest.fixture
def run(streams, monkeypatch, tmp_path, tiny_dinov2, tiny_bert):  # noqa: F811
    """Runs a command of the page in this process as if in one of its own; gives its exit status."""
    monkeypatch.chdir(tmp_path)
    towers = {"lite0": str(tiny_dinov2), "minilm": str(tiny_bert)}

    def start(words):
        name, rest = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
        rest = [towers.get(word, word) for word in rest] + SMALL.get(name, [])
        before = (sys.stdout, sys.stderr, [(h, h.stream) for h in all_handlers()])
        try:
            return MAINS[name](rest)
        finally:
            private_mode._set_key(None)
            private_messages._places.clear()
            sys.stdout, sys.stderr = before[:2]
            for handler, stream in before[2]:
                handler.setStream(stream)

    return start


def canaries_of_the_export(folder):
    """Every name, number, date and report that was planted, and digests by which they could be looked up."""
    planned = list(plan(COUNT, 64, 0, LANGUAGE))
    cases = [case_of(image, 0) for image in planned]
    dates = {day for case in cases for day in (case.born, case.seen)}
    ids = {case.patient_id for case in cases} | {case.accession for case in cases}
    ids |= {case.study_uid + "." for case in cases} | {case.image_uid for case in cases}
    reports = {image.report.text for image in planned} | {RADIOLOGIST, "Zuweisung", "Aufnahme"}
    return {
        "name": {case.family for case in cases} | {f"{c.given} {c.family}" for c in cases},
        "id": ids,
        "date": {f"{day:%d.%m.%Y}" for day in dates} | {f"{day:%Y-%m-%d}" for day in dates},
        "report": reports,
        "place": {str(folder), "hospital/export", "older studies", "IMAGES/P0"},
        "unkeyed digest": {d(i.encode()).digest() for i in ids for d in (hashlib.sha256, hashlib.md5)},
    }, {f"{day:%Y%m%d}" for day in dates}


def test_the_page_runs_without_network_and_no_patient_is_in_what_it_leaves(run, tmp_path, capfd, monkeypatch):
    # Patients are split by the key's digests: with one of some keys the test part has a single report.
    monkeypatch.setattr(keys, "secrets", SimpleNamespace(token_hex=lambda count: "5b" * count))
    words = commands(ROOT / "docs/first_week.md")
    assert [next(w for w in command[1:] if w != "-m") for command in words] == [
        "adaptor_hf.phantom", "adaptor_hf.data", "adaptor_hf.audit", "train_pretrain.py", "train_downstream.py",
        "adaptor_hf.verify", "adaptor_hf.verify", "adaptor_hf.audit",
    ]  # fmt: skip
    run(words[0])
    capfd.readouterr()
    for command in words[1:]:
        assert run(command) in (None, 0), (command, capfd.readouterr())
    captured = capfd.readouterr()
    said = captured.out + captured.err

    # A cache, a checkpoint, a private card, a table of results, verified.
    assert list((tmp_path / "outputs/private-embeddings").glob("pairs-*/pairs.arrow"))
    assert (tmp_path / "outputs/first/model.safetensors").is_file()
    assert "our radiographs" in (tmp_path / "outputs/first/README.md").read_text(encoding="utf-8")
    assert list((tmp_path / "outputs/retrieval/runs").glob("*/results.jsonl"))
    assert json.loads((tmp_path / "pairs/index_report.json").read_text())["rows"] == COUNT
    assert said.lower().count("verified") >= 2
    assert list((tmp_path / "checklists").iterdir())

    # No canary but in the table that the user keeps.
    canaries, digits = canaries_of_the_export(tmp_path)
    (tmp_path / "hospital").rename(tmp_path.parent / f"{tmp_path.name}-hospital")
    hits = found(canaries, tmp_path, said)
    assert {kind: names - {"pairs/pairs.csv"} for kind, names in hits.items()} == {kind: set() for kind in hits}
    # The search finds them: in the table they are, and digests of ids are nowhere.
    assert hits.keys() == canaries.keys() - {"unkeyed digest"}
    # Dates that are eight digits could be inside of a number: only where they stand alone.
    pattern = re.compile(rb"(?<![\d.])(?:" + "|".join(sorted(digits)).encode() + rb")(?![\d.])")
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.name != "pairs.csv"):
        assert not any(pattern.search(part) for part in contents(path)), path
    assert not pattern.search(said.encode())
