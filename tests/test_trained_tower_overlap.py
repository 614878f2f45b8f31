"""A test set that a tower was trained on is refused, whatever Adaptor stands on it; pushes, records, terms, bundles."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_runs import main as pretrain
from pretrain_runs import make_options, make_rows, write_table
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.data.training_rows import (
    TRAINING_ROWS_FILE,
    Seen,
    copy_training_rows,
    find_training_rows,
    id_namespaces,
    write_training_rows,
)
from adaptor_hf.embeddings.contents import content_digests
from adaptor_hf.evaluation import read_results
from adaptor_hf.file_records import check_model
from adaptor_hf.hub.push import files_to_push, push_folder
from adaptor_hf.hub.trained_card import write_tower_card
from adaptor_hf.tasks.arguments import parse_arguments
from adaptor_hf.tasks.data import load_table
from adaptor_hf.tasks.loading import trained_towers
from adaptor_hf.tasks.overlap import overlap_fields
from adaptor_hf.tasks.provenance import tower_name, tower_saw
from adaptor_hf.tower_folders_adaptor import read_tower_file, save_tower
from adaptor_hf.towers.bundle import _origins, bundle_towers
from adaptor_hf.towers.terms import note_training_data, terms_of
from adaptor_hf.towers_adaptor import load_vision_tower
from adaptor_hf.verify import verification

NAME = "phantom-boxes"


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vision_tower, table):
    """A checkpoint whose vision tower was trained on the table's test rows, in a run that knows its rows."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("trained") / "run"
    model = AdaptorModel(synthetic_config(vision_hidden_size=32, vision_tower=vision_tower.spec))
    tower = copy.deepcopy(vision_tower)
    note_training_data(tower.spec, [NAME], {"mimic_cxr": "credentialed"})
    model.attach_towers(tower, None)
    model.set_trainable_towers(vision_model="full")
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    rows = load_table(table)
    rows = rows.select([row for row, split in enumerate(rows["split"]) if split == "test"])
    write_training_rows(folder, content_digests(rows), rows["patient_id"][:], id_namespaces(NAME, table))
    copy_training_rows(folder, folder / "vision_tower")
    write_tower_card(folder / "vision_tower")
    return folder


@pytest.fixture
def run(table, tmp_path, tmp_path_factory):
    def start(model, *more):
        train_downstream.main(
            ["--task", "classification", "--model", str(model), "--table", str(table), "--dataset_name", NAME,
             "--label_column", "effusion", "--seeds", "0", "--output_dir", str(tmp_path / "out"), "--cache_dir",
             str(tmp_path_factory.getbasetemp() / "trained-overlap"), "--device", "cpu", "--num_resamples", "20",
             "--controls", "tower", *more]
        )  # fmt: skip
        return {line["module"]: line for line in read_results(tmp_path / "out/runs").lines}

    return start


def test_rows_of_a_tower_are_refused_under_an_adaptor_that_never_saw_them(run, trained, checkpoint, table, tmp_path):
    # The tower alone, out of its run, and an Adaptor that was trained on nothing of this.
    tower, other = tmp_path / "tower", tmp_path / "other"
    shutil.copytree(trained / "vision_tower", tower)
    shutil.copytree(checkpoint, other)
    write_training_rows(other, None, ["somebody"], ("elsewhere",))
    with pytest.raises(ValueError, match=r"pre-training \(vision tower: 4 of 4 patients, 8 of 8 images\)"):
        run(other, "--vision_tower", str(tower))
    lines = run(other, "--vision_tower", str(tower), "--allow_seen")
    # Also what no pair has shaped stands on it.
    for key in ("adaptor", "tower"):
        assert (lines[key]["pretraining_overlap"], lines[key]["seen_images"]) == ("found", 8)
        assert lines[key]["tower_saw_dataset"] == "yes"
        assert "tiny-dinov2" in lines[key]["vision_tower"]
        assert "trained in full, weights" in lines[key]["vision_tower"]


def test_the_tower_of_a_checkpoint_counts_for_every_system_on_it(trained, checkpoint, table, tmp_path):
    words = ["--task", "classification", "--table", str(table), "--label_column", "effusion", "--model"]
    found = trained_towers(parse_arguments([*words, str(trained)]))
    assert found == {"vision tower": str(trained / "vision_tower")}
    assert trained_towers(parse_arguments([*words, str(checkpoint)])) == {}
    seen = {"adaptor": Seen(0, 2), "vision tower": Seen(3, None)}
    assert overlap_fields(seen, "tower") == {"pretraining_overlap": "found", "seen_patients": 3, "seen_images": None}
    assert overlap_fields(seen, "finetune") == {"pretraining_overlap": "found", "seen_patients": 3, "seen_images": 2}
    unknown = {"adaptor": Seen(0, 0), "vision tower": Seen(None, None)}
    assert overlap_fields(unknown, "adaptor")["pretraining_overlap"] == "unknown"
    assert overlap_fields({"adaptor": Seen(0, 0)}, "tower")["pretraining_overlap"] == "none"


def test_a_changed_or_added_file_of_the_tower_stops_the_use_of_the_checkpoint(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    from adaptor_hf.audit.manifest import covered_files, pretraining_patterns
    from adaptor_hf.file_records import write_manifest
    from adaptor_hf.files import file_sha256

    names = covered_files(run, pretraining_patterns())
    assert {"vision_tower/model.safetensors", "vision_tower/tower.json", "vision_tower/README.md"} <= set(names)
    content = {"script": "train_pretrain", "inputs": {"cache": {"folder": None, "files": {}}}, "splits": {}}
    write_manifest(run, content | {"files": {name: file_sha256(run / name) for name in names}})
    state, files = check_model(run)
    assert (state, "vision_tower/config.json" in files) == ("verified", True)
    # So is the tower's folder alone, by the record of its run.
    assert check_model(run / "vision_tower").state == "verified"
    (run / "vision_tower/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"vision_tower/pytorch_model.bin is not in manifest.json"):
        check_model(run)
    (run / "vision_tower/pytorch_model.bin").unlink()
    file = run / "vision_tower/tower.json"
    file.write_text(file.read_text().replace("mean", "cls").replace("credentialed", "free"))
    for place in (run, run / "vision_tower"):
        with pytest.raises(ValueError, match=r"tower.json is damaged or was changed"):
            check_model(place)


def test_a_push_takes_the_tower_and_asks_for_its_terms(trained, tmp_path):
    with pytest.raises(PermissionError, match="mimic_cxr: credentialed"):
        push_folder(trained, "me/model")
    with pytest.raises(PermissionError, match="mimic_cxr: credentialed"):
        push_folder(trained / "vision_tower", "me/tower")
    with pytest.raises(PermissionError, match="mimic_cxr: credentialed"):
        AdaptorModel.from_pretrained(trained).push_to_hub("me/model")
    files = files_to_push(trained)
    inside = {name.partition("/")[2] for name in files if name.startswith("vision_tower/")}
    assert inside == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tower.json"}
    assert not any("training_rows" in name for name in files)
    assert f"vision_tower/{TRAINING_ROWS_FILE}" in files_to_push(trained, training_rows=True)
    assert not any(name.endswith(".key") for name in files_to_push(trained, training_rows=True))
    assert not any(str(trained.parent).encode() in content for content in files.values())
    config = json.loads(files["config.json"])
    assert (config["vision_tower"]["name_or_path"], config["vision_tower"]["subfolder"]) == (".", "vision_tower")
    # A whole copy of what is sent is a model.
    for name, content in files.items():
        (tmp_path / "sent" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sent" / name).write_bytes(content)
    again = AdaptorModel.from_pretrained(tmp_path / "sent")
    sent = again.vision_model.state_dict()
    own = load_vision_tower(str(trained / "vision_tower")).state_dict()
    assert all(torch.equal(value, sent[name]) for name, value in own.items())


def test_a_checkpoint_with_towers_in_it_pushes_the_trained_one_too(trained, text_tower, tmp_path):
    model = AdaptorModel(synthetic_config(vision_hidden_size=32, text_hidden_size=text_tower.hidden_size))
    model.attach_towers(load_vision_tower(str(trained / "vision_tower")), copy.deepcopy(text_tower))
    model.config.towers_in_checkpoint = True
    model.save_pretrained(tmp_path / "run")
    with pytest.raises(PermissionError, match="mimic_cxr: credentialed"):
        push_folder(tmp_path / "run", "me/model")
    for name, content in files_to_push(tmp_path / "run").items():
        (tmp_path / "sent" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sent" / name).write_bytes(content)
    sent, own = AdaptorModel.from_pretrained(tmp_path / "sent").state_dict(), model.state_dict()
    assert all(torch.equal(value, sent[name]) for name, value in own.items())
    shutil.rmtree(tmp_path / "run/vision_tower")
    with pytest.raises(FileNotFoundError, match=r"vision_tower/tower\.json"):
        files_to_push(tmp_path / "run")


def test_a_checkpoint_without_its_towers_folder_is_not_pushed(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/vision_tower")
    with pytest.raises(FileNotFoundError, match="vision_tower"):
        files_to_push(tmp_path / "run")


class TestBundles:
    def test_a_trained_tower_goes_along_with_its_terms_and_without_its_rows(self, trained, tmp_path):
        entries = bundle_towers([str(trained / "vision_tower")], tmp_path / "bundle")
        assert list(entries) == ["run--vision_tower"]
        assert "mimic_cxr: credentialed" in entries["run--vision_tower"]["data_terms"]
        place = tmp_path / "bundle/run--vision_tower"
        assert not any(path.name.startswith("training_rows") for path in place.iterdir())
        own = load_vision_tower(str(trained / "vision_tower")).state_dict()
        carried = load_vision_tower(str(place))
        assert all(torch.equal(value, carried.state_dict()[name]) for name, value in own.items())
        assert carried.spec["trained"] == "full"
        (place / "tower.json").write_text((place / "tower.json").read_text().replace("credentialed", "free"))
        with pytest.raises(OSError, match=r"tower\.json"):
            load_vision_tower(str(place))

    def test_low_rank_weights_bring_what_they_are_on(self, tmp_path):
        """Of a tower with a name that others know, which then does not stand beside them."""
        tower = load_vision_tower("lite0")
        tower.set_trainable("full")
        save_tower(tower, tmp_path / "full")
        assert list(bundle_towers([str(tmp_path / "full")], tmp_path / "bundle")) == [f"{tmp_path.name}--full"]
        (tmp_path / "full/config.json").unlink()
        (tmp_path / "full/adapter_config.json").write_text("{}")
        assert _origins([str(tmp_path / "full")]) == ["lite0"]
        assert _origins([str(tmp_path / "full"), "lite0"]) == []


class TestTerms:
    def test_the_strictest_of_origin_and_data_holds(self):
        free = {"base_tower": {"preset": "dinov2-s", "name_or_path": "facebook/dinov2-small"}, "trained": "full"}
        assert terms_of({"preset": "dinov2-s"})["commercial"] == "yes"
        assert terms_of(free)["commercial"] == "unclear"
        bound = terms_of(free | {"data_terms": {"mimic_cxr": "credentialed"}})
        assert (bound["commercial"], "mimic_cxr: credentialed" in bound["data_terms"]) == ("unclear", True)
        strict = {"base_tower": {"preset": "rad-dino", "name_or_path": "microsoft/rad-dino"}, "trained": "full"}
        assert terms_of(strict)["commercial"] == terms_of({"preset": "rad-dino"})["commercial"]

    def test_what_the_origin_saw_stays_and_unknown_stays_unknown(self):
        known, unknown = {"pretraining_data": ["ImageNet-1k"]}, {"pretraining_data": None}
        note_training_data(known, ["rsna"], None)
        note_training_data(unknown, ["rsna"], {"rsna": "research"})
        assert known == {"pretraining_data": ["ImageNet-1k", "rsna"]}
        assert tower_saw(known, "rsna") == "yes"
        assert tower_saw(unknown, "rsna") == "yes"
        assert tower_saw(unknown, "chexpert") == "unknown"
        note_training_data(unknown, ["siim"], {"siim": "other"})
        assert unknown["data_terms"] == {"rsna": "research", "siim": "other"}
        # A set that has its images was seen too, and a phantom only where it was trained on.
        assert tower_saw({"pretraining_data": ["chexpert"]}, "chexpert_5x200") == "yes"
        assert tower_saw({"pretraining_data": [NAME]}, NAME) == "yes"
        assert tower_saw({"pretraining_data": ["rsna"]}, NAME) == "no"

    def test_the_folder_says_them_too(self, trained, tmp_path):
        spec = read_tower_file(trained / "vision_tower")
        assert spec["data_terms"] == {"mimic_cxr": "credentialed"}
        assert NAME in spec["pretraining_data"]
        assert "credentialed" in (trained / "vision_tower/README.md").read_text()
        assert tower_name(spec) == f"{spec['base_tower']['name_or_path']}, trained in full"


@pytest.mark.slow
class TestScripts:
    """From a table to a tower that trained, and what stands on it."""

    @pytest.fixture(scope="class")
    def live(self, tmp_path_factory, tiny_dinov2, tiny_bert):
        folder = tmp_path_factory.mktemp("live")
        options = make_options(make_rows(folder), tiny_dinov2, tiny_bert, folder)
        options |= {"dataset_name": "toy pairs", "train_vision_tower": "full", "num_train_epochs": 1}
        pretrain(folder / "run", options)
        return folder, options

    def test_the_run_has_the_tower_its_rows_and_its_card_and_verifies(self, live):
        folder, _ = live
        tower = folder / "run/vision_tower"
        names = {path.name for path in tower.iterdir()}
        assert names >= {"README.md", "tower.json", TRAINING_ROWS_FILE, "training_rows.key", "model.safetensors"}
        assert read_tower_file(tower)["pretraining_data"] == ["unknown", "toy pairs"]
        card = (tower / "README.md").read_text()
        assert "toy pairs" in card
        assert str(folder) not in card
        assert verification(folder / "run").differences == []
        content = (tower / "tower.json").read_bytes()
        (tower / "tower.json").write_bytes(content.replace(b"full", b"lora"))
        assert any("vision_tower/tower.json" in what for what in verification(folder / "run").differences)
        (tower / "tower.json").write_bytes(content)

    def test_a_second_run_on_its_tower_has_seen_its_rows_too(self, live):
        """The tower alone, moved; another table with other patients; then a test on rows of the first run."""
        folder, options = live
        shutil.copytree(folder / "run/vision_tower", folder / "elsewhere")
        second = make_rows_of_other_patients(folder)
        changes = {"vision_tower": folder / "elsewhere", "train_vision_tower": None, "dataset_name": "second"}
        pretrain(folder / "second", options | changes | {"train_file": second})
        first = find_training_rows(folder / "run")
        for place in (folder / "second", folder / "second/vision_tower"):
            rows = find_training_rows(place)
            assert set(first.images.tolist()) < set(rows.images.tolist())
            assert rows.complete
        assert verification(folder / "second").differences == []
        with pytest.raises(
            ValueError, match=r"in pre-training \(adaptor: \d+ of 17 patients, \d+ of 34 images; vision"
        ):
            train_downstream.main(
                ["--task", "retrieval", "--model", str(folder / "second"), "--table", str(options["train_file"]),
                 "--image_column", "path", "--text_column", "report", "--patient_column", "subject", "--dataset_name",
                 "toy pairs", "--output_dir", str(folder / "out"), "--device", "cpu", "--num_resamples", "20",
                 "--test_fraction", "0.9", "--validation_fraction", "0.05"]
            )  # fmt: skip


def make_rows_of_other_patients(folder):
    (folder / "more").mkdir()
    rows = [row | {"subject": f"other-{row['subject']}"} for row in make_rows(folder / "more")]
    generator = np.random.default_rng(9)
    for row in rows:
        Image.fromarray(generator.integers(0, 255, (40, 36)).astype(np.uint8)).save(row["path"])
    return write_table(
        folder, [{name: row[name] for name in ("path", "report", "subject")} for row in rows], "more.csv"
    )
