"""Damage and edits of finished runs: found by `verify`, and refused where the files would be used."""

import json
import re
import shutil

import pytest
from damage import OF_THE_CACHE, change_json, flip, forget, path_name, reseal, seal
from synthetic import synthetic_model

from adaptor_hf import AdaptorModel
from adaptor_hf.audit.card_numbers import card_differences, tables
from adaptor_hf.audit.manifest import NOT_COVERED, why_not_covered
from adaptor_hf.file_records import (
    MANIFEST_FILE,
    check_model,
    content_sha256,
    is_loaded,
)
from adaptor_hf.files import file_sha256
from adaptor_hf.tasks.controls import load_systems
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import RetrievalResult, format_table, save_controls
from adaptor_hf.training.report import write_retrieval
from adaptor_hf.training.systems import System
from adaptor_hf.verify import main, verification, verify


@pytest.fixture
def run(pretrained_run, tmp_path):
    return shutil.copytree(pretrained_run, tmp_path / "run")


class TestPretraining:
    def test_one_flipped_bit_in_any_file_is_found_or_stands_on_the_list(self, run):
        missed = []
        listed = json.loads((run / MANIFEST_FILE).read_text())["files"]
        # Those of the manifest at once: each has to be named.
        undone = [flip(run / name) for name in listed]
        found = verify(run)
        missed += [name for name in listed if not any(what.startswith(f"{name} is not the file") for what in found)]
        for undo in undone:
            undo()
        for path in sorted(path for path in run.rglob("*") if path.is_file()):
            name = path.relative_to(run).as_posix()
            if name in listed or (name.startswith("checkpoint-15/") and path.suffix != ".safetensors"):
                continue  # as checkpoint-16
            undo = flip(path)
            if not verify(run):
                missed.append(name)
            undo()
        assert verify(run) == []
        wrong = [name for name in missed if not (name.startswith("embeddings/") and path_name(name) in OF_THE_CACHE)]
        assert wrong == []

    def test_what_the_manifest_leaves_out_has_a_reason_and_is_no_result(self, run):
        manifest = json.loads((run / MANIFEST_FILE).read_text())
        left_out = {path.name for path in run.iterdir() if path.is_file()} - manifest["files"].keys()
        assert left_out == {MANIFEST_FILE}
        assert all(NOT_COVERED.values())
        for name in ("runs/0/results.jsonl.damaged", ".x.123.partial", "checkpoint-15/config.json"):
            assert why_not_covered(name), name
        for name in ("README.md", "runs/0/results.jsonl", "controls/shuffled/model.safetensors"):
            assert why_not_covered(name) is None, name

    @pytest.mark.parametrize(
        "name", ["adapter_config.json", "extra.py", "tokenizer.json", "controls/shuffled/model.safetensors"]
    )
    def test_a_file_that_was_added_is_found(self, run, name):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
        assert verify(run)[0] == f"{name} is not in the manifest: it was added since, or nothing recorded it."

    def test_every_number_of_the_cards_tables_is_compared_also_when_the_manifest_is_forged(self, run):
        card = run / "README.md"
        text = card.read_text()
        retrieval, record = (json.loads((run / name).read_text()) for name in ("retrieval.json", "run.json"))
        places = []
        for columns, rows in tables(text):
            if columns[0] in ("metric", "argument"):
                for row in rows:
                    line = next(line for line in text.splitlines() if line.startswith(f"| {row[0]} | {row[1]}"))
                    cells = line.index("|", 2)
                    numbers = [match.start() for match in re.finditer(r"\d+", line) if match.start() > cells]
                    places += [text.index(line) + number for number in numbers]
        assert len(places) > 60
        missed = []
        for place in places:
            card.write_text(text[:place] + str((int(text[place]) + 5) % 10) + text[place + 1 :])
            if not card_differences(card, retrieval, record, None):
                missed.append(text[text.rindex("\n", 0, place) : text.index("\n", place)].strip())
        # Of mean_recall, the number of queries is recorded nowhere.
        assert [line.split()[1] for line in missed] == ["mean_recall"]
        card.write_text(text.replace("(34,017 trainable", "(12,345 trainable"))
        reseal(run, "README.md")
        assert verify(run) == ["Model card: 12,345 trainable parameters, and run.json has 34,017."]

    def test_every_number_of_the_controls_table_is_compared(self, tmp_path):
        def result(name, value):
            names = ("recall@1", "recall@5", "recall@10", "median_rank")
            metrics = {f"{way}_{one}": value for way in ("image_to_text", "text_to_image") for one in names}
            metrics["mean_recall"] = value
            intervals = {name: (value - 0.1, value + 0.1) for name in metrics if "median" not in name}
            return RetrievalResult(name, metrics, intervals, {}, chance=dict.fromkeys(metrics, 0.125))

        results = [result("Adaptor, this run", 0.625), result("Projections | only", 0.375)]
        card, text = tmp_path / "README.md", format_table(results)
        card.write_text(text)
        write_retrieval(tmp_path, results[0], "test", results[1:])
        retrieval = json.loads((tmp_path / "retrieval.json").read_text())
        assert [what for what in card_differences(card, retrieval, {}, None) if "table of controls" in what] == []
        rows = text.index("Adaptor, this run"), text.index("Intervals:")
        places = [match.start() for match in re.finditer(r"(?<=\.)\d", text) if rows[0] < match.start() < rows[1]]
        assert len(places) == 2 * 16 + 6
        for place in places:
            card.write_text(text[:place] + str((int(text[place]) + 5) % 10) + text[place + 1 :])
            assert any("table of controls" in what for what in card_differences(card, retrieval, {}, None)), place

    def test_a_consistent_forgery_passes_and_the_page_says_so(self, run):
        # What no digest without a signature can find.
        change_json(run / "run.json", lambda record: record["options"].update(dataset_name="another"))
        reseal(run, "run.json")
        assert verify(run) == []

    def test_a_manifest_of_the_earlier_version_verifies_and_what_it_lacks_is_said(self, run):
        def earlier(manifest):
            names = ("model.safetensors", "config.json", "run.json", "training_args.json", "retrieval.json")
            manifest |= {"version": 1, "files": {name: manifest["files"][name] for name in names}}
            del manifest["sha256"], manifest["inputs"]["cache"]["settings"]

        change_json(run / MANIFEST_FILE, earlier)
        found = verification(run)
        assert found.differences == []
        assert "README.md has no digest in this manifest." in found.unchecked
        assert any("settings" in what for what in found.unchecked)
        assert check_model(run).state == "verified"
        flip(run / "model.safetensors")
        assert verify(run)

    def test_settings_of_the_cache_are_compared(self, run):
        path = next((run / "embeddings").glob("images-*/cache.json"))
        change_json(path, lambda cache: cache["tower"].update(pooling="mean"))
        assert any("settings in images-" in what or "cache" in what.lower() for what in verify(run))


MALFORMED = {
    "empty": b"",
    "no JSON": b"{",
    "other encoding": '{"é": 1}'.encode("latin-1"),
    "a list": b"[1, 2]",
    "a text": b'"manifest"',
    "null": b"null",
    "nothing in it": b"{}",
    "deep": b'{"a":' * 100_000,
    "deep and whole": b'{"version": 2, "a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep but readable": b'{"version": 2, "script": "train_pretrain", "files": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a long number": b'{"version": ' + b"9" * 10_000 + b"}",
    "NUL bytes": b"\0" * 1000,
}
WRONG = {
    "version": [None, "2", 3, [], {}, True, -1, 1e400],
    "script": [None, 1, "rm -rf", []],
    "inputs": [None, [], {}, {"cache": None}, {"cache": {"folder": 3, "files": {}}}, {"cache": {"folder": "x"}}],
    "splits": [None, [], {"all": 3}, {"all": {"x": 1}}],
    "files": [None, [], {"a": None}, {"a": "0" * 63}, *({name: "0" * 64} for name in ("../a", "/a", "a\0", ""))],
    "sha256": [None, 1, "0" * 64],
}  # fmt: skip


class TestMalformedManifests:
    @pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
    def test_it_is_a_message_and_status_one(self, content, run, capsys):
        (run / MANIFEST_FILE).write_bytes(content)
        assert main([str(run)]) == 1
        assert MANIFEST_FILE in capsys.readouterr().out
        if content == b"{}":
            assert check_model(run).state == "unverified"  # perhaps another program's
            return
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            check_model(run)

    @pytest.mark.parametrize("name", WRONG)
    def test_values_of_another_kind_and_missing_keys(self, name, run, capsys):
        whole = json.loads((run / MANIFEST_FILE).read_text())
        for value in WRONG[name]:
            manifest = whole | {name: value}
            if name != "sha256":
                manifest["sha256"] = content_sha256(manifest)
            (run / MANIFEST_FILE).write_text(json.dumps(manifest))
            assert main([str(run)]) == 1, value
        manifest = {key: value for key, value in whole.items() if key != name}
        (run / MANIFEST_FILE).write_text(json.dumps(manifest | {"sha256": content_sha256(manifest)}))
        if name != "sha256":
            assert main([str(run)]) == 1
        assert "Traceback" not in capsys.readouterr().err

    def test_a_huge_one_is_not_read(self, run):
        with open(run / MANIFEST_FILE, "wb") as file:
            file.truncate(10**10)
        assert "10,000,000,000 bytes" in verify(run)[0]

    @pytest.mark.parametrize("name", ["retrieval.json", "run.json", "README.md", "checkpoint-16/checkpoint.json"])
    @pytest.mark.parametrize(
        "content",
        [b"[]", b'{"metrics": 3, "weights": 1, "intervals": [], "files": 7}', b"\xff\xfe", b"---\n: [\n---\n"],
    )
    def test_other_records_too(self, name, content, run):
        (run / name).write_bytes(content)
        assert verify(run)

    def test_names_with_escape_codes_are_printed_escaped(self, run, capsys):
        change_json(run / MANIFEST_FILE, lambda manifest: manifest["files"].update({"\x1b[31m\n": "0" * 64}))
        seal(run)
        assert main([str(run)]) == 1
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert r"\x1b[31m is missing" in said  # in one line


class TestModels:
    def test_a_run_its_checkpoints_and_its_controls_are_verified_and_any_flipped_bit_is_refused(self, run):
        for folder in (run, run / "checkpoint-16"):
            assert check_model(folder).state == "verified"
            names = [path.name for path in folder.iterdir() if is_loaded(path.name)]
            assert {"model.safetensors", "config.json"} <= set(names)
            for name in names:
                undo = flip(folder / name)
                forget()
                with pytest.raises(ValueError, match=f"{name} is damaged or was changed: its SHA-256 is") as error:
                    check_model(folder)
                assert file_sha256(folder / name) in str(error.value)
                undo()
                forget()
        assert check_model(run).state == "verified"

    def test_a_missing_and_an_added_file(self, run):
        (run / "adapter_config.json").write_text("{}")
        with pytest.raises(ValueError, match=r"adapter_config\.json is not in manifest\.json: it was added"):
            check_model(run)
        (run / "adapter_config.json").unlink()
        (run / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
            check_model(run)

    def test_a_copy_without_record_a_hub_id_and_anothers_manifest_are_unverified(self, run, tmp_path):
        (run / MANIFEST_FILE).unlink()
        assert check_model(run).state == "unverified"
        (run / MANIFEST_FILE).write_text('{"files": [], "made_by": "something else"}')
        assert check_model(run).state == "unverified"
        assert check_model("someone/model") == ("unverified", {})
        synthetic_model().save_pretrained(tmp_path / "saved")
        assert check_model(tmp_path / "saved").state == "unverified"

    def test_the_key_may_be_deleted_and_not_changed(self, run):
        (run / "training_rows.key").write_bytes(b"0" * 64)
        with pytest.raises(ValueError, match=r"training_rows\.key"):
            check_model(run)
        (run / "training_rows.key").unlink()
        assert check_model(run).state == "verified"
        assert verify(run) == []

    def test_controls_and_results_say_whether_they_were_verified(self, run, tmp_path):
        projections = System("projections", synthetic_model(num_hidden_layers=0))
        control = save_controls([projections], run / "controls")
        reseal(run, *(path.relative_to(run).as_posix() for path in (run / "controls").rglob("*") if path.is_file()))
        # As a run writes it: sorted, so that the model's own files come after those of its controls.
        change_json(
            run / MANIFEST_FILE, lambda manifest: manifest.update(files=dict(sorted(manifest["files"].items())))
        )
        model = AdaptorModel.from_pretrained(run, load_towers=False)
        systems = load_systems(model, ["tower"], control)
        assert [system.fields()["checkpoint_check"] for system in systems] == ["verified", None, "verified"]
        flip(run / "controls/projections/model.safetensors")
        forget()
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was changed"):
            load_systems(model, [], control)
        model.save_pretrained(tmp_path / "copy")
        copied = AdaptorModel.from_pretrained(tmp_path / "copy", load_towers=False)
        assert load_systems(copied, [])[0].fields()["checkpoint_check"] == "unverified"

    def test_weights_have_the_mode_of_their_neighbours(self, pretrained_run, tmp_path):
        synthetic_model().save_pretrained(tmp_path)
        for folder in (tmp_path, pretrained_run, pretrained_run / "checkpoint-16"):
            modes = {(folder / name).stat().st_mode & 0o777 for name in ("model.safetensors", "config.json")}
            assert len(modes) == 1, folder


def test_a_model_that_is_replaced_has_no_manifest_until_its_run_ends(run, views):
    arguments = AdaptorTrainingArguments(output_dir=str(run), use_cpu=True, disable_tqdm=True)
    trainer = AdaptorTrainer(
        model=synthetic_model(), args=arguments, train_dataset=views["train"], eval_dataset=views["validation"]
    )
    trainer.save_model()
    assert not (run / MANIFEST_FILE).exists()
    assert check_model(run).state == "unverified"
    (run / MANIFEST_FILE).write_text('{"of": "another program"}')
    trainer.save_model()
    assert (run / MANIFEST_FILE).exists()


def test_a_damaged_model_is_refused_before_anything_is_computed(run, tmp_path):
    import train_downstream

    flip(run / "model.safetensors")
    forget()
    said = r"model\.safetensors is damaged or was changed: its SHA-256 is [0-9a-f]{64}, .* Copy the file back"
    (tmp_path / "no.csv").write_text("image,x\n")
    with pytest.raises(ValueError, match=said):
        train_downstream.main([
            "--task", "classification", "--model", str(run), "--table", str(tmp_path / "no.csv"), "--label_column", "x",
            "--output_dir", str(tmp_path / "out"), "--device", "cpu",
        ])  # fmt: skip


def test_the_other_scripts_folder_is_refused(run, tmp_path):
    import train_downstream

    with pytest.raises(ValueError, match=r"--output_dir is the folder of a finished train_pretrain.py run"):
        train_downstream.main([
            "--task", "classification", "--model", str(run), "--table", str(tmp_path / "no.csv"), "--label_column", "x",
            "--output_dir", str(run), "--device", "cpu",
        ])  # fmt: skip
