"""The supervised control: a published classifier's scores beside the Adaptor, for the classes that it knows."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_xrv_towers import with_statistics

import train_downstream
from adaptor_hf import AdaptorImageProcessor
from adaptor_hf.data.labels import CHEXPERT_LABELS
from adaptor_hf.data.public.nih_chestxray14 import LABELS
from adaptor_hf.evaluation import load_predictions, read_results
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks.arguments import parse_arguments
from adaptor_hf.tasks.data import LabelledData
from adaptor_hf.tasks.provenance import tower_saw
from adaptor_hf.tasks.supervised import known_classes, load_supervised
from adaptor_hf.towers.xrv_labels import match_labels
from adaptor_hf.xrv_towers_adaptor import XRV_CLASSIFIERS, xrv_image_processor

DENSE, RES = "densenet121-res224-all", "resnet50-res512-all"
PROCESSOR = AdaptorImageProcessor(**xrv_image_processor(224))


@pytest.fixture(scope="module")
def home(tmp_path_factory, labelled_table):
    """A home folder with a published file of random weights, whose scores of the images spread over (0, 1)."""
    from torchxrayvision.models import DenseNet

    home = tmp_path_factory.mktemp("home")
    folder = home / ".torchxrayvision" / "models_data"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = with_statistics(DenseNet())
    images = [Image.open(path) for path in sorted((labelled_table(80).parent / "images").glob("1[0-5].png"))]
    with torch.no_grad():
        features = network.features2(PROCESSOR(images, return_tensors="pt").pixel_values)
        features = (features - features.mean(0)).flatten(1)
        network.classifier.weight /= (features @ network.classifier.weight.T).std(0)[:, None]
        network.classifier.bias -= network(PROCESSOR(images, return_tensors="pt").pixel_values).mean(0)
    torch.save(network, folder / XRV_CLASSIFIERS[DENSE].file, _use_new_zipfile_serialization=False)
    return home


def options(table, checkpoint, output, *more, task="classification"):
    return [
        "--task", task, "--model", str(checkpoint), "--table", str(table), "--dataset_name", "ward",
        "--label_column", "effusion", "edema", "--seeds", "0", "--output_dir", str(output), "--device", "cpu",
        "--num_resamples", "50", "--controls", "tower", "--supervised_control", f"xrv:{DENSE}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def table(labelled_table, tmp_path_factory):
    """The labelled images with a column of a finding that the classifier does not know."""
    original = labelled_table(80)
    with open(original, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {"image": str(original.parent / row["image"]), "rib_notch": row["edema"]}
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def finished(home, table, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        train_downstream.main(options(table, checkpoint, output, "--label_column", "effusion", "edema", "rib_notch"))
    return output


def own_scores(home, table) -> dict[str, np.ndarray]:
    """torchxrayvision's model, loaded by itself, on the test images as its processor gives them."""
    from torchxrayvision.models import DenseNet

    model = DenseNet(weights=DENSE, cache_dir=str(home / ".torchxrayvision" / "models_data"))
    with open(table, encoding="utf-8") as file:
        images = {row["image"]: Image.open(row["image"]) for row in csv.DictReader(file) if row["split"] == "test"}
    with torch.no_grad():
        scores = model(PROCESSOR(list(images.values()), return_tensors="pt").pixel_values).numpy()
    return {name: dict(zip(model.pathologies, row, strict=True)) for name, row in zip(images, scores, strict=True)}


def test_scores_are_those_of_torchxrayvisions_model(finished, home, table):
    expected = own_scores(home, table)
    (folder,) = [path.parent for path in finished.glob("runs/*/results.jsonl") if '"supervised"' in path.read_text()]
    predictions = load_predictions(folder)
    assert len(predictions.columns["image_id"]) == len(expected) == 16
    assert predictions.settings["class_names"] == ["effusion", "edema"]
    for image, score in zip(predictions.columns["image_id"], predictions.columns["score"], strict=True):
        np.testing.assert_allclose(score, [expected[image]["Effusion"], expected[image]["Edema"]], atol=1e-4)
    scores = np.stack(predictions.columns["score"])
    assert scores.std(0).min() > 0.05, "all images score alike: this would show nothing"


def test_it_is_one_row_with_intervals_beside_the_others(finished):
    lines = read_results(finished / "runs").lines
    assert {line["module"] for line in lines} == {"adaptor", "tower", "supervised"}
    ours = [line for line in lines if line["module"] == "supervised"]
    by_metric = {line["metric"]: line for line in ours}
    line = by_metric["auroc"]
    assert line["ci_lo"] < line["value"] < line["ci_hi"]
    of_classes = [by_metric[f"auroc/{name}"]["value"] for name in ("effusion", "edema")]
    assert line["value"] == pytest.approx(np.mean(of_classes))
    assert (line["system"], line["vision_tower"], line["protocol"]) == ("supervised classifier", DENSE, "supervised")
    assert line["recipe"] == "published operating points, 2 of 3 classes"
    assert (line["trainable_params"], line["n_train"], line["fraction"], line["selected_on"]) == (0, 0, None, None)
    assert (line["tower_saw_dataset"], line["pretraining_overlap"]) == ("unknown", "none")
    assert not any(name.startswith(("ece", "brier")) for name, one in by_metric.items() if not np.isnan(one["value"]))
    others = {line["targets_hash"] for line in lines if line["module"] != "supervised"}
    assert line["targets_hash"] not in others
    assert all(faults == [] for faults in verify_tree(finished / "runs").values())


def test_what_is_left_out_is_said(finished, home, table, checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    train_downstream.main(options(table, checkpoint, finished, "--label_column", "effusion", "edema", "rib_notch"))
    said = capsys.readouterr().out
    assert "3 runs were finished before" in said
    assert f"supervised classifier {DENSE}: classes that it does not know are left out (rib_notch)" in said
    assert "its means are over 2 of 3 classes; compare class by class" in said
    assert "was trained on labels of NIH ChestX-ray14, PadChest" in said
    assert "whether ward shares images with them is not known" in said
    assert "| supervised classifier | supervised |" in said


@pytest.mark.slow
def test_zero_shot_has_the_row_too_and_a_class_can_be_named(home, table, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    prompts = {"effusion": {"positive": ["effusion"], "negative": ["no effusion"]},
               "edema": {"positive": ["edema"], "negative": ["no edema"]},
               "rib_notch": {"positive": ["notch"], "negative": ["no notch"]}}  # fmt: skip
    (tmp_path / "prompts.json").write_text(json.dumps({"classes": prompts}))
    more = ["--label_column", "effusion", "edema", "rib_notch", "--prompts", str(tmp_path / "prompts.json")]
    more += ["--supervised_label", "rib_notch=Fracture"]
    train_downstream.main(options(table, checkpoint, tmp_path / "out", *more, task="zero_shot"))
    lines = read_results(tmp_path / "out" / "runs").lines
    assert {(line["module"], line["protocol"]) for line in lines} == {
        ("adaptor", "zeroshot"),
        ("supervised", "supervised"),
    }
    # All classes are known: both rows predict the same.
    assert len({line["targets_hash"] for line in lines}) == 1
    assert "do not know" not in capsys.readouterr().out


# Names


def test_labels_of_public_data_sets_are_matched_as_torchxrayvision_maps_them():
    from torchxrayvision.datasets import default_pathologies
    from torchxrayvision.models import model_urls

    chexpert = match_labels(CHEXPERT_LABELS, default_pathologies)
    assert chexpert.known == {
        name: {"Pleural Effusion": "Effusion"}.get(name, name)
        for name in CHEXPERT_LABELS
        if name not in ("No Finding", "Pleural Other", "Support Devices")
    }
    assert chexpert.unknown == ["No Finding", "Pleural Other", "Support Devices"]
    nih = match_labels([*LABELS, "No Finding"], default_pathologies)
    assert nih.known == {name: name for name in LABELS}
    # Every class of CheXpert's own weights has a label of CheXpert's.
    assert set(chexpert.known.values()) == {name for name in model_urls["densenet121-res224-chex"]["labels"] if name}


def test_names_that_join_two_classes_are_refused_until_one_is_said():
    theirs = ["Nodule", "Mass", "Effusion"]
    found = match_labels(["Nodule/Mass", "pleural_effusion", "Erguss"], theirs)
    assert found == ({"pleural_effusion": "Effusion"}, ["Erguss"], ["Nodule/Mass"])
    found = match_labels(["Nodule/Mass", "Erguss"], theirs, {"Nodule/Mass": "Mass", "Erguss": "Effusion"})
    assert found == ({"Nodule/Mass": "Mass", "Erguss": "Effusion"}, [], [])
    with pytest.raises(ValueError, match=r"the classifier has no class 'Ergus'\. It has Nodule, Mass, Effusion"):
        match_labels(["Erguss"], theirs, {"Erguss": "Ergus"})
    with pytest.raises(ValueError, match="the data set has no class 'Ergus'"):
        match_labels(["Erguss"], theirs, {"Ergus": "Effusion"})


@pytest.fixture(scope="module")
def classifier(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        return load_supervised(DENSE)


def test_a_class_without_operating_point_is_none(classifier):
    """torchxrayvision gives 0.5 for it in every image, which says nothing."""
    assert len(classifier.known) == 18
    some = replace(classifier, thresholds=classifier.thresholds.clone().index_fill(0, torch.tensor([7]), torch.nan))
    assert set(classifier.known) - set(some.known) == {"Effusion"}
    assert (some.scores(torch.randn(5, 1024))[:, 7] == 0.5).all()
    from torchxrayvision.models import model_urls

    facts = model_urls[RES]
    told = [name for name, point in zip(facts["labels"], facts["op_threshs"], strict=True) if not np.isnan(point)]
    res = replace(classifier, thresholds=torch.tensor(facts["op_threshs"]), labels=tuple(facts["labels"]))
    assert res.known == told
    assert "Lung Lesion" not in res.known


def data_of(names, exclusive=False):
    labels = np.zeros(3, np.int64) if exclusive else np.zeros((3, len(names)), np.float32)
    return LabelledData("x", names, exclusive, {}, {"test": labels}, "split")


def test_exclusive_classes_are_all_known_or_not_scored(classifier):
    assert known_classes(data_of(["Edema", "Effusion", "Mass"], True), classifier)[0].exclusive
    assert known_classes(data_of(["Edema", "Effusion", "Normal"], True), classifier)[0] is None
    assert known_classes(data_of(["Normal"]), classifier)[0] is None
    reduced, matched = known_classes(data_of(["Normal", "Edema"]), classifier)
    assert (reduced.class_names, reduced.labels["test"].shape) == (["Edema"], (3, 1))
    assert matched.unknown == ["Normal"]


def test_what_it_was_trained_on_is_told(classifier):
    for dataset in ("nih_chestxray14", "chexpert", "mimic_cxr", "rsna", "openi", "chexpert_5x200"):
        assert tower_saw(classifier.spec, dataset) == "yes", dataset
    assert tower_saw(classifier.spec, "shenzhen") == "no"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--supervised_control", "xrv:101-elastic"], "takes a classifier of torchxrayvision.*xrv:resnet50-res512-all"),
        (["--supervised_label", "effusion"], "--supervised_label reads MINE=ITS"),
    ],
)
def test_wrong_options_are_said_before_anything_is_read(table, checkpoint, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train_downstream.main(options(table, checkpoint, tmp_path / "out", *change))
    assert not (tmp_path / "out").exists()


def test_options_go_with_their_tasks(table, checkpoint, tmp_path):
    words = options(table, checkpoint, tmp_path)
    alone = [word for word in words if "xrv:" not in word and word != "--supervised_control"]
    with pytest.raises(ValueError, match="give both"):
        parse_arguments([*alone, "--supervised_label", "a=Mass"])
    words[words.index("classification")] = "few_shot"
    with pytest.raises(ValueError, match=r"--supervised_control is for --task classification or zero_shot"):
        parse_arguments(words)


def test_absent_weights_are_said_before_anything_is_read(table, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=rf"towers bundle xrv:{DENSE} --to towers"):
        train_downstream.main(options(table, checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_in_private_mode_class_names_are_counted(classifier, monkeypatch):
    from adaptor_hf.tasks import supervised

    data = data_of(["Ms Miller's finding", "Nodule/Mass", "Edema"])
    reduced, matched = known_classes(data, classifier)
    monkeypatch.setattr(supervised, "is_private", lambda: True)
    said = " ".join(supervised._left_out(classifier, data, reduced, matched))
    assert "left out (1)" in said
    assert "its own (1)" in said
    assert "Miller" not in said
    assert "Nodule" not in said
