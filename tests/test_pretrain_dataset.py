"""`train_pretrain.py --dataset NAME --data_root FOLDER`: a public data set in the place of a table."""

import json

import pytest
from fixtures.mimic_cxr import REPORT, copy_mimic, images
from fixtures.phantom_trees import N

import train_pretrain
from adaptor_hf.training.pairs import load_training_pairs
from adaptor_hf.training.script_arguments import DataArguments

IMAGES = images()
FIRST = next(image for image in IMAGES if image.split == "train")


@pytest.fixture
def mimic(tmp_path):
    """Patients with a study or more; the first training study has a report that is known."""
    return copy_mimic(tmp_path / "mimic", reports={FIRST.study: REPORT})


def test_a_public_data_set_trains_end_to_end(mimic, tmp_path, tiny_dinov2, tiny_bert):
    output = tmp_path / "model"
    words = {
        "dataset": "mimic_cxr", "data_root": mimic, "dataset_option": "sentences=mgca", "vision_tower": tiny_dinov2,
        "text_tower": tiny_bert, "output_dir": output,
        "aligner": '{"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}',
        "max_text_length": 32, "global_batch_size": 4, "num_train_epochs": 1, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    train_pretrain.main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    assert json.loads((output / "config.json").read_text())["model_type"] == "adaptor"
    assert "mimic_cxr" in (output / "README.md").read_text()


def test_the_table_has_all_splits_and_the_options_text(mimic):
    arguments = DataArguments(dataset="mimic_cxr", data_root=str(mimic), dataset_option=["sentences=mgca"])
    pairs = load_training_pairs(arguments).dataset
    assert dict(zip(pairs["image_id"][:], pairs["split"][:], strict=True)) == {
        image.dicom: image.split for image in IMAGES
    }
    text = pairs["text"][pairs["image_id"][:].index(FIRST.dicom)]
    assert text.startswith("no acute cardiopulmonary process 5 cm nodule")


def test_a_repeated_part_of_a_reference_split_is_left_out(mimic, caplog):
    arguments = DataArguments(dataset="mimic_cxr", data_root=str(mimic), split_scheme="mgca")
    pairs = load_training_pairs(arguments).dataset
    assert sorted(set(pairs["split"][:])) == ["train", "validation"]
    assert len(set(pairs["image_id"][:])) == len(pairs) == N
    assert "images of test are all in an earlier part" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mimic_cxr"}, "--data_root its folder: give both"),
        ({"dataset": "mimic_cxr", "data_root": "x", "text_column": "report"}, "text_column would have no effect with"),
        ({"train_file": "x.csv", "split_scheme": "mgca"}, "split_scheme would have no effect without --dataset"),
        ({"dataset": "mimic_cxr", "data_root": "x", "train_file": "x.csv"}, "one of them"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**changes)


def test_a_word_without_value_is_no_option(mimic):
    arguments = DataArguments(dataset="mimic_cxr", data_root=str(mimic), dataset_option=["sentences"])
    with pytest.raises(ValueError, match="An option is name=value, got 'sentences'"):
        load_training_pairs(arguments)
