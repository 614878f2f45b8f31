"""Tasks compute with the tower that a checkpoint holds, not with the one that it came from."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.predictions import load_predictions
from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower

POSITIVE, NEGATIVE = "pleural effusion", "no pleural effusion"


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(40)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, tiny_dinov2, tiny_bert):
    """Folder of a checkpoint that holds both its towers, with weights that are no longer those of their origin."""
    torch.manual_seed(5)
    vision, text = load_vision_tower(str(tiny_dinov2)), load_text_tower(str(tiny_bert))
    config = synthetic_config(
        vision_hidden_size=32, text_hidden_size=32, vision_tower=vision.spec, text_tower=text.spec
    )
    model = AdaptorModel(config)
    model.attach_towers(vision, text)
    with torch.no_grad():
        for parameter in [*vision.parameters(), *text.parameters()]:
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.config.towers_in_checkpoint = True
    folder = tmp_path_factory.mktemp("changed") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(table, tmp_path, tmp_path_factory):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"classes": {"effusion": {"positive": [POSITIVE], "negative": [NEGATIVE]}}}))

    def start(task, model, *more):
        train_downstream.main(
            ["--task", task, "--model", str(model), "--table", str(table), "--dataset_name", "phantom-boxes",
             "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path_factory.getbasetemp() / "own-tower"),
             "--device", "cpu", "--num_resamples", "20", "--seeds", "0",
             *(str(prompts) if word == "PROMPTS" else word for word in more)]
        )  # fmt: skip
        return tmp_path / "out"

    return start


def test_rows(table):
    with open(table, encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test"]


test_rows.__test__ = False


def pixels_of(table, tower):
    images = [Image.open(table.parent / row["image"]) for row in test_rows(table)]
    return tower.processor(images, return_tensors="pt")["pixel_values"]


def features(model, pixel_values=None, texts=None):
    """Shared-space vectors by the whole model, from pixels and words: none of the tasks' code."""
    with torch.no_grad():
        if texts is None:
            return model.get_image_features(pixel_values=pixel_values).pooler_output
        inputs = model.text_model.processor(texts, return_tensors="pt", padding=True)
        return model.get_text_features(**inputs).pooler_output


def test_zero_shot_scores_are_those_of_the_whole_checkpoint(run, table, changed):
    out = run("zero_shot", changed, "--label_column", "effusion", "--prompts", "PROMPTS", "--controls", "none")
    model = AdaptorModel.from_pretrained(changed).eval()
    images = features(model, pixel_values=pixels_of(table, model.vision_model))
    positive, negative = features(model, texts=[POSITIVE, NEGATIVE])
    expected = (images @ positive - images @ negative).numpy()
    (folder,) = (out / "runs").iterdir()
    found = load_predictions(folder)
    assert np.allclose(found.columns["score"].reshape(-1), expected, atol=2e-3)
    # Of its origin it would be another number.
    model.attach_towers(load_vision_tower(model.config.vision_tower), load_text_tower(model.config.text_tower))
    origin = features(model, pixel_values=pixels_of(table, model.vision_model))
    assert not np.allclose((origin @ positive - origin @ negative).numpy(), expected, atol=2e-2)


def test_the_saved_classifier_holds_the_tower_that_its_scores_come_from(run, table, changed):
    out = run("classification", changed, "--label_column", "effusion", "--do_predict", str(table.parent / "images"))
    classifier = AdaptorForImageClassification.from_pretrained(out / "model").eval()
    own = AdaptorModel.from_pretrained(changed).vision_model.state_dict()
    saved = classifier.adaptor.vision_model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in own.items())
    with open(out / "predictions.csv", encoding="utf-8") as file:
        scores = {row["image_id"]: float(row["effusion"]) for row in csv.DictReader(file)}
    with torch.no_grad():
        probabilities = classifier(pixel_values=pixels_of(table, classifier.adaptor.vision_model)).logits.sigmoid()
    names = [row["image"].removeprefix("images/").removesuffix(".png") for row in test_rows(table)]
    found = [next(value for key, value in scores.items() if key.removesuffix(".png") == name) for name in names]
    assert np.allclose(found, probabilities[:, -1].numpy(), atol=2e-3)


def test_two_checkpoints_that_differ_in_their_tower_alone_are_two_runs(run, table, changed, tmp_path):
    other = AdaptorModel.from_pretrained(changed)
    with torch.no_grad():
        for parameter in other.vision_model.parameters():
            parameter.mul_(0.5)
    other.save_pretrained(tmp_path / "other")
    for model in (changed, tmp_path / "other"):
        out = run("classification", model, "--label_column", "effusion", "--controls", "tower")
    lines = [line for line in read_results(out / "runs").lines if line["metric"] == "auroc"]
    assert len({line["run"] for line in lines}) == 4
    assert len({line["vision_tower"] for line in lines}) == 2


@pytest.mark.slow
def test_a_decoder_of_masks_is_saved_with_the_tower_that_it_was_trained_on(run, changed):
    out = run("segmentation", changed, "--mask_column", "mask", "--image_size", "28", "--epochs", "1", "--controls",
              "none", "--save_model")  # fmt: skip
    own = AdaptorModel.from_pretrained(changed).vision_model.state_dict()
    saved = AdaptorForSemanticSegmentation.from_pretrained(out / "model").adaptor.vision_model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in own.items())


@pytest.mark.slow
def test_a_classifier_is_saved_with_the_tower_that_was_asked_for(run, table, changed, checkpoint, tmp_path):
    """Whatever the checkpoint names or holds: its head was trained on this one."""
    other = AdaptorModel.from_pretrained(changed).vision_model
    other.model.save_pretrained(tmp_path / "other")
    other.processor.save_pretrained(tmp_path / "other")
    for number, model in enumerate((checkpoint, changed)):
        run("classification", model, "--label_column", "effusion", "--controls", "none", "--save_model",
            "--vision_tower", str(tmp_path / "other"))  # fmt: skip
        saved = AdaptorForImageClassification.from_pretrained(tmp_path / "out/model").adaptor.vision_model.state_dict()
        assert all(torch.equal(saved[name], value) for name, value in other.state_dict().items()), number
