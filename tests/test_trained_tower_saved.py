"""A classifier whose tower trained: what trains, what is saved, and that the folder alone gives the run's numbers."""

import copy
import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import synthetic_config
from torch import nn

import adaptor_hf  # noqa: F401  (Auto classes)
import train_downstream
from adaptor_hf import AdaptorForImageClassification, AdaptorModel
from adaptor_hf.data.training_rows import find_training_rows
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.predictions import load_predictions
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.tasks.data import labelled_data, load_table, split_table
from adaptor_hf.tasks.finetune import trainable_model
from adaptor_hf.tasks.tower_training import decayed_optimizer
from adaptor_hf.towers_adaptor import load_vision_tower
from adaptor_hf.verify import verification

METHODS = ("finetune", "lora", "1")


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(40)


@pytest.fixture(scope="module")
def data(table):
    parts, split_hash = split_table(load_table(table, label_columns=["effusion", "edema"]))
    return labelled_data("phantom-boxes", parts, split_hash)


@pytest.fixture
def model(vision_tower):
    torch.manual_seed(0)
    return AdaptorModel(synthetic_config(vision_hidden_size=32, vision_tower=vision_tower.spec))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, table, checkpoint):
    """A run with all three, and its folders moved to another place."""
    out = tmp_path_factory.mktemp("trained") / "out"
    train_downstream.main(
        ["--task", "classification", "--model", str(checkpoint), "--table", str(table), "--dataset_name",
         "phantom-boxes", "--label_column", "kind", "--seeds", "0", "--output_dir", str(out), "--controls", "none",
         "--train_tower", *METHODS, "--epochs", "1", "--device", "cpu", "--num_resamples", "20", "--save_model",
         "--layer_decay", "0.7"]
    )  # fmt: skip
    return out


def test_the_last_blocks_train_with_all_that_comes_after_them(model, vision_tower, data):
    classifier = trainable_model(model, vision_tower, "1", data, None, 0).train()
    tower = classifier.adaptor.vision_model
    trained = {name for name, value in tower.named_parameters() if value.requires_grad}
    assert trained
    assert all(".layer.1." in name or "layernorm" in name for name in trained)
    assert {name for name, _ in tower.named_parameters() if ".layer.1." in name} <= trained
    assert all(value.requires_grad for value in classifier.adaptor.visual_projection.parameters())


def test_lora_is_what_peft_makes_of_the_attention_with_the_same_seed(model, vision_tower, data):
    """As before towers had `set_trainable`: the same weights get the same numbers, so that trainings are the same."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import set_seed

    found = trainable_model(model, vision_tower, "lora", data, None, 3)
    set_seed(3)
    adaptor, tower = copy.deepcopy(model), copy.deepcopy(vision_tower)
    adaptor.attach_towers(tower, None)
    expected = AdaptorForImageClassification.from_adaptor(
        adaptor, num_labels=data.num_logits, problem_type="multi_label_classification"
    )
    names = {name.rpartition(".")[2] for name, part in tower.model.named_modules() if isinstance(part, nn.Linear)}
    targets = sorted(names & {"query", "value", "q_proj", "v_proj", "qkv"})
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=targets), tower.model)
    assert {name: value.requires_grad for name, value in found.named_parameters()} == {
        name: value.requires_grad for name, value in expected.named_parameters()
    }
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())


def test_end_to_end_the_tower_computes_as_the_frozen_one_does(tiny_dinov2, data):
    """No dropout in it, and the batch statistics of its pre-training."""
    tower = load_vision_tower("lite0")
    torch.manual_seed(0)
    model = AdaptorModel(synthetic_config(vision_hidden_size=tower.hidden_size, vision_tower=tower.spec))
    classifier = trainable_model(model, tower, "finetune", data, None, 0).train()
    assert not any(part.training for part in classifier.adaptor.vision_model.modules())
    assert all(value.requires_grad for value in classifier.adaptor.vision_model.parameters())
    assert classifier.adaptor.shared_encoder.training


def test_rates_fall_by_the_decay_from_block_to_block(model, vision_tower, data):
    classifier = trainable_model(model, vision_tower, "finetune", data, None, 0)
    optimizer = decayed_optimizer(classifier, 1.0, 0.5)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    decays = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    for name, value in classifier.named_parameters():
        if not value.requires_grad:
            assert id(value) not in rates
            continue
        # BEiT's rule for two blocks: 0 is what comes before them.
        depth = 0 if "embeddings" in name else 1 if ".layer.0." in name else 2 if ".layer.1." in name else 3
        assert rates[id(value)] == 0.5 ** (3 - depth), name
        assert decays[id(value)] == (0.01 if value.ndim > 1 else 0.0), name


def images(table, folder):
    with open(table, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return [Image.open(table.parent / row["image"]) for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_folder_gives_the_scores_of_the_run_wherever_it_is(finished, table, tmp_path, method):
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    key = "blocks" if method == "1" else method
    lines = [line for line in read_results(finished / "runs").lines if line["module"] == key]
    found = load_predictions(finished / "runs" / lines[0]["run"]).columns["score"]
    folder = tmp_path / "moved"
    (finished / f"model-{method}").rename(folder)
    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        pixels = processor(images(table, folder), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            assert np.abs(model(pixels).logits.double().softmax(1).numpy() - found).max() < 1e-6
        names = list(model.config.id2label.values())
        classify = pipeline("image-classification", model=str(folder), device="cpu")
        for row, one in enumerate(classify(images(table, folder), top_k=3)):
            scores = {each["label"]: each["score"] for each in one}
            assert np.abs(np.array([scores[name] for name in names]) - found[row]).max() < 1e-6
    finally:
        folder.rename(finished / f"model-{method}")


def test_the_run_says_what_trained_and_verifies_until_a_file_of_the_tower_is_another(finished):
    lines = {line["module"]: line for line in read_results(finished / "runs").lines}
    assert lines["blocks"]["system"] == "Adaptor, last blocks trained"
    assert lines["blocks"]["recipe"] == "last 1 blocks, 1 epochs, lr 2e-05, layer decay 0.7"
    assert (
        lines["lora"]["trainable_params"] < lines["blocks"]["trainable_params"] < lines["finetune"]["trainable_params"]
    )
    assert verification(finished).differences == []
    weights = finished / "model-finetune/vision_tower/model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-4] + bytes(4))
        (difference,) = verification(finished).differences
        assert "model-finetune/vision_tower/model.safetensors" in difference
    finally:
        weights.write_bytes(content)


@pytest.mark.parametrize("method", METHODS)
def test_cards_state_origin_data_and_how_it_trained(finished, method):
    from huggingface_hub import ModelCard

    tower = ModelCard.load(finished / f"model-{method}/vision_tower/README.md")
    said = {"finetune": "trained in full", "lora": "trained by LoRA", "1": "last block trained"}[method]
    assert said in tower.text
    assert "phantom-boxes" in tower.text
    assert tower.data.datasets is None, "a name of the user's is no public data set"
    card = ModelCard.load(finished / f"model-{method}/README.md")
    assert said in card.text
    assert {result.metric_type for result in card.data.eval_results} >= {"auroc", "accuracy"}
    assert card.data.pipeline_tag == "image-classification"
    for text in (tower.content, card.content):
        assert str(finished) not in text
        assert "/tmp" not in text


@pytest.mark.parametrize("method", METHODS)
def test_it_carries_the_rows_that_it_was_trained_on(finished, data, method):
    folder = finished / f"model-{method}"
    for place in (folder, folder / "vision_tower"):
        rows = find_training_rows(place)
        patients = {part: data.parts[part]["patient_id"][:] for part in ("train", "validation", "test")}
        for part, status in (("train", "found"), ("validation", "found"), ("test", None)):
            seen = rows.compare(patients[part], None, rows.namespaces)
            assert seen.patients == (len(set(patients[part])) if status else None), part


def test_no_place_of_this_machine_is_in_a_saved_folder(finished):
    for method in METHODS:
        for path in (finished / f"model-{method}").rglob("*"):
            if path.is_file() and path.suffix in (".json", ".md", ".safetensors"):
                assert str(finished.parent).encode() not in path.read_bytes(), path
    config = json.loads((finished / "model-lora/config.json").read_text())
    assert (config["vision_tower"]["name_or_path"], config["vision_tower"]["subfolder"]) == (".", "vision_tower")


@pytest.mark.slow
def test_a_private_run_leaves_no_place_and_no_id_in_what_it_saves(table, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(private_mode, "_key", None)
    out = tmp_path / "out"
    train_downstream.main(
        ["--task", "classification", "--model", str(checkpoint), "--table", str(table), "--label_column", "effusion",
         "--seeds", "0", "--output_dir", str(out), "--controls", "none", "--train_tower", "finetune", "--epochs", "1",
         "--device", "cpu", "--num_resamples", "20", "--save_model", "--private", "--key_file", str(tmp_path / "key")]
    )  # fmt: skip
    folder = out / "model-finetune"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"tower.json", "README.md", "training_rows.safetensors", "config.json"}
    assert not any(path.name == "training_rows.key" for path in files)
    with open(table, encoding="utf-8") as file:
        ids = {row["patient_id"] for row in csv.DictReader(file)}
    for path in files:
        content = path.read_bytes()
        # The text tower alone, which is frozen and named by a folder, has a place: no model is loaded without it.
        content = (
            json.dumps(json.loads(content) | {"text_tower": None}).encode() if path.name == "config.json" else content
        )
        assert str(tmp_path.parent).encode() not in content, path.name
        assert str(table.parent).encode() not in content, path.name
        assert not any(f'"{one}"'.encode() in content for one in ids), path.name
