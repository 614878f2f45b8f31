"""Towers that train too: what gets gradients, what stays, and runs beside the frozen ones."""

import numpy as np
import pytest
import torch
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks.data import labelled_data, load_table, split_table
from adaptor_hf.tasks.finetune import run_finetune, trainable_model
from adaptor_hf.tasks.tower_training import train_classifier


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(40)


@pytest.fixture(scope="module")
def tower(vision_tower):
    return vision_tower


@pytest.fixture
def model(tower):
    torch.manual_seed(0)
    return AdaptorModel(synthetic_config(vision_hidden_size=32, vision_tower=tower.spec))


@pytest.fixture(scope="module")
def data(table):
    parts, split_hash = split_table(load_table(table, label_columns=["effusion", "edema"]))
    return labelled_data("phantom-boxes", parts, split_hash)


def test_lora_trains_small_weights_in_the_attention_and_the_head(model, tower, data):
    classifier = trainable_model(model, tower, "lora", data, None, 0)
    names = [name for name, value in classifier.named_parameters() if value.requires_grad]
    assert all("lora_" in name or name.startswith("classifier.") for name in names)
    # Two layers, two matrices, rank 8 both ways; the head is linear on 48.
    assert sum(value.numel() for value in classifier.parameters() if value.requires_grad) == 2 * 2 * 8 * 64 + 48 * 2 + 2
    assert not any("lora" in name for name, _ in tower.named_modules())


def test_end_to_end_trains_tower_adaptor_and_head(model, tower, data):
    classifier = trainable_model(model, tower, "finetune", data, None, 0)
    frozen = [name for name, value in classifier.named_parameters() if not value.requires_grad]
    assert sorted(frozen) == ["adaptor.logit_scale", "adaptor.text_projection.weight"]
    assert not any(value.requires_grad for value in tower.parameters())


def test_a_last_batch_of_one_image_is_refused_before_the_first_step(tower, data):
    config = synthetic_config(vision_hidden_size=32, vision_tower=tower.spec, aligner="mlp", num_hidden_layers=1)
    for model, hidden_size in (
        (AdaptorModel(config), None),
        (AdaptorModel(synthetic_config(vision_hidden_size=32)), 8),
    ):
        classifier = trainable_model(model, tower, "finetune", data, hidden_size, 0)
        with pytest.raises(ValueError, match=r"9 rows in batches of 4 leave a last batch of a single one, and .*Norm"):
            # Nothing of an image is read.
            train_classifier(
                classifier, [None] * 9, [], None, exclusive=False, learning_rate=1.0, epochs=1, batch_size=4, seed=0
            )


def test_what_images_never_reach_is_not_trained(tower, data):
    config = synthetic_config(vision_hidden_size=32, vision_tower=tower.spec, logit_bias_init_value=-10)
    model = AdaptorModel(config)
    classifier = trainable_model(model, tower, "finetune", data, None, 0)
    trained = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
    images = torch.rand(4, 3, 28, 28)
    classifier(pixel_values=images).logits.sum().backward()
    assert [name for name, value in trained.items() if value.grad is None and "vision_model" not in name] == []
    assert "adaptor.visual_projection.weight" in trained


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_training_reaches_the_copy_and_leaves_model_and_tower(method, model, tower, data, tmp_path):
    before = [value.clone() for part in (model, tower) for value in part.state_dict().values()]
    found = run_finetune(data, model, tower, method, tmp_path, epochs=1, learning_rate=1e-3, num_resamples=20)
    after = [value for part in (model, tower) for value in part.state_dict().values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    line = next(line for line in found.lines if line["metric"] == "auroc")
    assert (line["protocol"], line["selected_on"]) == (method, "validation")
    assert line["head_params"] < line["trainable_params"] <= line["total_params"]
    assert np.isfinite(line["value"])


def test_the_script_adds_lora_to_the_frozen_runs(table, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    train_downstream.main(
        ["--task", "classification", "--model", str(tmp_path / "model"), "--table", str(table), "--dataset_name",
         "phantom-boxes", "--label_column", "kind", "--seeds", "0", "--output_dir", str(tmp_path / "out"), "--controls",
         "none", "--train_tower", "lora", "--epochs", "1", "--device", "cpu", "--num_resamples", "20"]
    )  # fmt: skip
    assert {line["module"] for line in read_results(tmp_path / "out/runs").lines} == {"adaptor", "lora"}
    assert not any(verify_tree(tmp_path / "out/runs").values())


def test_unknown_method_is_refused(model, tower, data):
    with pytest.raises(ValueError, match="finetune or lora, or a number"):
        trainable_model(model, tower, "qlora", data, None, 0)
