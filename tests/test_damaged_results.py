"""Damage and edits of downstream results: found by `verify`, in no report, and in no later manifest."""

import json
import logging
import re
import shutil

import pytest
from damage import OF_THE_CACHE, flip, path_name
from synthetic import synthetic_cache, synthetic_model
from test_evaluation_results import FIELDS, of_labels, of_masks, of_retrieval

from adaptor_hf.audit.manifest import files_before, write_downstream_manifest
from adaptor_hf.evaluation.results import changed_since_written, read_sound_results, run_key, write_run
from adaptor_hf.evaluation.verify import verify_run
from adaptor_hf.file_records import MANIFEST_FILE, SUMS_FILE, read_sums, rewriting
from adaptor_hf.files import file_sha256
from adaptor_hf.tasks.runs import finished_lines
from adaptor_hf.verify import main, verification, verify

KINDS = {predictions.kind: predictions for predictions in (of_labels(), of_masks(), of_retrieval()[0])}


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return value | {"more": 1}
    return [*value, "more"] if isinstance(value, list) else "changed" if value is None else f"{value}x"


class TestResultLines:
    @pytest.mark.parametrize("kind", KINDS)
    def test_an_edit_of_each_field_of_each_kind_of_line_is_found(self, kind, tmp_path):
        folder = tmp_path / "runs" / run_key(FIELDS)
        written = write_run(folder, KINDS[kind], FIELDS | {"checkpoint_check": "verified", "n_train": 9})
        path = folder / "results.jsonl"
        text = path.read_text()
        assert verify_run(folder) == []
        lines = [json.loads(line) for line in text.splitlines()]
        assert {"tower_saw_dataset", "n_train", "n_patients", "interval_over", "ci_method", "versions"} <= lines[
            0
        ].keys()
        for name in written[0]:
            changed = [line | {name: other(line[name])} if number == 1 else line for number, line in enumerate(lines)]
            path.write_text("".join(json.dumps(line) + "\n" for line in changed))
            # Scoring again takes most of the time; one kind is enough to see that the whole command says it.
            found = verify(tmp_path) if kind == "segmentation" else changed_since_written(folder)
            assert any("results.jsonl is not the file" in what for what in found), name
        path.write_text(text + text.splitlines()[0].replace(FIELDS["dataset"], "another") + "\n")
        assert verify_run(folder)
        path.write_text(text)
        assert verify_run(folder) == []

    @pytest.mark.parametrize("value", [None, "x", 1e400, True, {"a": {"b": []}}, [[10**30]]], ids=repr)
    def test_values_of_any_kind_in_any_field_end_in_a_message(self, value, tmp_path, monkeypatch):
        monkeypatch.setattr(logging.getLogger("adaptor_hf"), "disabled", True)
        write_run(tmp_path / "r", KINDS["segmentation"], FIELDS)
        path = tmp_path / "r" / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for name in [name for name in lines[0] if lines[0][name] != value]:
            changed = [line | {name: value} for line in lines]
            path.write_text("".join(json.dumps(line) + "\n" for line in changed))
            assert verify(tmp_path), name
        path.write_bytes(b"[" * 100_000 + b"\n")
        assert main([str(tmp_path)]) == 1

    def test_a_changed_run_stands_in_no_report_and_is_made_again(self, tmp_path, caplog):
        for seed in (0, 1):
            write_run(tmp_path / str(seed), of_labels(), FIELDS | {"seed": seed})
        path = tmp_path / "1" / "results.jsonl"
        path.write_text(path.read_text().replace('"tower_saw_dataset": "no"', '"tower_saw_dataset": "yes"'))
        found = read_sound_results(tmp_path)
        assert {line["seed"] for line in found.lines} == {0}
        assert "results.jsonl is not the file of this run's SHA256SUMS" in found.faults[0]
        assert finished_lines(tmp_path / "1") is None
        assert (tmp_path / "1" / "results.jsonl.damaged").is_file()
        assert finished_lines(tmp_path / "0")

    def test_sums_are_those_of_sha256sum(self, tmp_path):
        write_run(tmp_path, of_labels(), FIELDS)
        text = (tmp_path / SUMS_FILE).read_text()
        assert re.fullmatch(r"([0-9a-f]{64}  (predictions\.parquet|results\.jsonl)\n){2}", text)
        assert read_sums(tmp_path) == {
            name: file_sha256(tmp_path / name) for name in ("predictions.parquet", "results.jsonl")
        }

    @pytest.mark.parametrize("content", [b"", b"\xff", b"0" * 64, b"0" * 64 + b"  ../x\n", b"x  y\n" * 9])
    def test_damaged_sums_are_a_difference(self, content, tmp_path):
        write_run(tmp_path, of_labels(), FIELDS)
        (tmp_path / SUMS_FILE).write_bytes(content)
        assert any("SHA256SUMS is damaged" in what for what in verify_run(tmp_path))


class TestDownstreamFolders:
    """Manifests of a folder that several calls write to, without the calls."""

    @pytest.fixture
    def folder(self, tmp_path):
        synthetic_cache(tmp_path / "out" / "embeddings")
        synthetic_model().save_pretrained(tmp_path / "model")
        self.call(tmp_path / "out", 0)
        return tmp_path / "out"

    def call(self, folder, seed):
        before = files_before(folder)
        fields = FIELDS | {"seed": seed}
        if not (folder / "runs" / run_key(fields) / "results.jsonl").exists():
            write_run(folder / "runs" / run_key(fields), of_labels(), fields)
        (folder / "costs.json").write_text(json.dumps({"seed": seed}))
        write_downstream_manifest(folder, [folder.parent / "model"], folder / "embeddings", before=before)

    def test_one_flipped_bit_in_any_file_is_found_or_stands_on_the_list(self, folder):
        assert verify(folder) == []
        missed = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            undo = flip(path)
            if not verify(folder):
                missed.append(path.relative_to(folder).as_posix())
            undo()
        assert [name for name in missed if path_name(name) not in (*OF_THE_CACHE, ".lock")] == []

    def test_a_later_call_does_not_hash_what_was_damaged_since(self, folder):
        first = next(folder.glob("runs/*"))
        for name in ("results.jsonl", "predictions.parquet", SUMS_FILE):
            undo = flip(first / name)
            self.call(folder, 1)
            assert any(f"{name} is not the file of the manifest" in what for what in verify(folder)), name
            undo()
        self.call(folder, 1)
        assert verify(folder) == []
        assert json.loads((folder / "costs.json").read_text()) == {"seed": 1}

    def test_a_run_that_was_added_by_hand_is_found_also_after_a_later_call(self, folder):
        added = shutil.copytree(next(folder.glob("runs/*")), folder / "runs" / "by_hand")
        expected = "runs/by_hand/results.jsonl is not in the manifest"
        assert any(what.startswith(expected) for what in verify(folder))
        (added / SUMS_FILE).unlink()
        self.call(folder, 1)
        assert any(what.startswith(expected) for what in verify(folder))

    def test_a_run_that_a_killed_call_finished_is_taken_with_its_own_record(self, folder):
        write_run(folder / "runs" / run_key(FIELDS | {"seed": 7}), of_labels(), FIELDS | {"seed": 7})
        self.call(folder, 1)
        assert verify(folder) == []

    def test_a_removed_run_is_missing_also_after_a_later_call(self, folder):
        name = next(folder.glob("runs/*")).name
        shutil.rmtree(folder / "runs" / name)
        self.call(folder, 1)
        assert f"runs/{name}/results.jsonl is missing." in verify(folder)

    def test_every_file_of_the_model_is_compared_and_an_unverified_one_is_said(self, folder):
        found = verification(folder)
        assert any("Model model: when it was evaluated, nothing recorded" in what for what in found.unchecked)
        for name in ("config.json", "model.safetensors", "modeling_adaptor.py"):
            undo = flip(folder.parent / "model" / name)
            assert any(what.startswith(f"Model model: {name} is not the file") for what in verify(folder)), name
            undo()

    def test_a_rewritten_page_gets_its_new_digest_unless_it_was_damaged(self, folder, caplog):
        page = folder / "costs.json"
        with rewriting(page):
            page.write_text("{}")
        assert verify(folder) == []
        page.write_text('{"edited": 1}')
        with rewriting(page):
            page.write_text('{"edited": 1, "more": 2}')
        assert "was not the file of manifest.json before" in caplog.text
        assert any(what.startswith("costs.json is not the file") for what in verify(folder))
        with rewriting(page, whole=True):
            page.write_text('{"new": 1}')
        assert verify(folder) == []

    def test_without_a_manifest_it_is_said_what_is_not_compared(self, folder, capsys):
        (folder / MANIFEST_FILE).unlink()
        assert main([str(folder)]) == 0
        assert "verified, but not all could be compared" in (said := capsys.readouterr().out)
        assert "not compared: There is no manifest.json" in said
        next(folder.glob(f"runs/*/{SUMS_FILE}")).unlink()
        assert any(SUMS_FILE in what for what in verification(folder).unchecked)
