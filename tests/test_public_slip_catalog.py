"""The sets of SLIP's catalog: class numbers in the order of labels.json, file lists, torchvision's sets, metrics."""

import json

import numpy as np
import pytest
from fixtures.slip import write_slip
from sklearn.metrics import confusion_matrix, roc_auc_score, top_k_accuracy_score

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.convert import main as convert
from adaptor_hf.data.public.slip_catalog import class_texts
from adaptor_hf.data.public_datasets import load_public_dataset
from adaptor_hf.evaluation.slip_metrics import slip_score
from adaptor_hf.tasks.prompts import load_prompts


@pytest.fixture
def tree(tmp_path):
    return write_slip(tmp_path / "slip")


def load(root, name):
    return load_public_dataset(
        "slip_catalog", root, cache_dir=root.parent / "cache", dataset=name, validation_fraction=0
    )


def read(root, name):
    dataset = get_dataset("slip_catalog")
    return dataset.read(Request(root, "classification", "official", {"dataset": name}))


def labelled(part):
    names = part.features["labels"].names
    return sorted((names[row["labels"]], int(np.asarray(row["image"])[0, 0, 0])) for row in part)


class TestFolders:
    def test_classes_are_numbered_by_their_folders(self, tree):
        splits = load(tree, "food101")
        assert labelled(splits["train"]) == [("apple_pie", 0), ("baby_back_ribs", 10), ("waffles", 20)]
        assert labelled(splits["test"]) == [("apple_pie", 100), ("baby_back_ribs", 110), ("waffles", 120)]

    def test_the_placeholder_of_the_catalog_gives_way_to_the_sets_name(self, tree):
        assert "its folder food101 is taken" in read(tree, "food101").notes[0]
        assert not any("is taken" in note for note in read(tree, "fer2013").notes)

    def test_folders_below_a_class_are_taken_too(self, tree):
        rows = read(tree, "fer2013").rows
        assert list(rows["labels"]) == [0, 1, 0, 1]
        assert rows["image"][0] == "faces/train/0/a/1.png"

    def test_another_order_than_that_of_the_labels(self, tree):
        labels = json.loads((tree / "labels.json").read_text())
        labels["food101"] = labels["food101"][::-1]
        (tree / "labels.json").write_text(json.dumps(labels))
        with pytest.raises(ValueError, match=r"class 'apple_pie' is number 0 by its folder and 2 in labels\.json"):
            read(tree, "food101")
        labels["food101"] = labels["food101"][:2]
        (tree / "labels.json").write_text(json.dumps(labels))
        with pytest.raises(ValueError, match=r"3 classes on disk, 2 in labels\.json"):
            read(tree, "food101")

    def test_a_class_without_test_folder(self, tree):
        (tree / "food101" / "test" / "waffles").rename(tree / "food101" / "test" / "waffle")
        with pytest.raises(ValueError, match="train and test have other classes, such as waffle, waffles"):
            read(tree, "food101")

    def test_a_missing_part(self, tree):
        (tree / "food101" / "test").rename(tree / "food101" / "tests")
        with pytest.raises(FileNotFoundError, match="no folder food101/test"):
            read(tree, "food101")


class TestLists:
    def test_words_of_clevr_have_a_fixed_order(self, tree):
        splits = load(tree, "clevr_counts")
        assert labelled(splits["train"]) == [("count_10", 1), ("count_3", 0)]
        assert splits["train"].features["labels"].names[:2] == ["count_10", "count_3"]
        assert labelled(splits["test"]) == [("count_9", 0)]

    def test_lists_of_objects_are_converted_first(self, tree):
        with pytest.raises(ValueError, match=r"convert .*train_images\.npy"):
            read(tree, "sun397")
        for part in ("train", "test"):
            path = tree / "sun397" / f"{part}_images.npy"
            convert([str(path), str(path.with_suffix(".parquet"))])
            path.unlink()
        assert labelled(load(tree, "sun397")["test"]) == [("airplane cabin", 5)]

    def test_lists_of_different_lengths(self, tree):
        np.save(tree / "clevr" / "val_labels.npy", np.array(["count_3", "count_4"]))
        with pytest.raises(ValueError, match="clevr_counts, val: 1 images but 2 labels"):
            read(tree, "clevr_counts")

    def test_an_unknown_word(self, tree):
        np.save(tree / "clevr" / "val_labels.npy", np.array(["count_2"]))
        with pytest.raises(ValueError, match="unknown label 'count_2'"):
            read(tree, "clevr_counts")


class TestTorchvision:
    def test_images_of_arrays_become_png(self, tree):
        splits = load(tree, "mnist")
        assert labelled(splits["train"]) == [("0 - zero", 7), ("1 - one", 14), ("2 - two", 21)]
        assert splits["test"][0]["image"].size == (28, 28)

    def test_a_copy_that_is_not_whole(self, tree):
        (tree / "data" / "cifar10").mkdir()
        with pytest.raises(FileNotFoundError, match="cifar10: torchvision finds no whole copy"):
            read(tree, "cifar10")


def test_names_and_prompts_of_classes(tree):
    assert class_texts(tree, "fer2013") == [["angry"], ["happy", "smiling"]]
    prompts = load_prompts(f"{tree}/labels.json:{tree}/templates.json:fer2013")
    assert prompts.positive["happy"] == (
        "a photo of a happy face.", "a photo of a smiling face.", "happy", "smiling",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"templates\.json has no data set 'mnist'"):
        load_prompts(f"{tree}/labels.json:{tree}/templates.json:mnist")


def test_a_set_must_be_named_and_be_there(tree):
    with pytest.raises(ValueError, match=r"Pass dataset=.*cifar10, clevr_counts"):
        read(tree, None)
    (tree / "food101").rename(tree / "food")
    with pytest.raises(FileNotFoundError, match="no folder under"):
        read(tree, "food101")


class TestMetrics:
    scores = np.random.default_rng(0).normal(size=(60, 7))
    labels = np.random.default_rng(1).integers(0, 7, 60)

    def test_top1(self):
        expected = (self.scores.argmax(1) == self.labels).mean()
        assert slip_score("food101", self.scores, self.labels) == pytest.approx(expected)

    @pytest.mark.parametrize("name", ["aircraft", "pets", "caltech101", "flowers"])
    def test_mean_per_class(self, name):
        matrix = confusion_matrix(self.labels, self.scores.argmax(1))
        expected = (matrix.diagonal() / matrix.sum(1)).mean()
        assert slip_score(name, self.scores, self.labels) == pytest.approx(expected)

    def test_mean_of_top1_and_top5(self):
        top = [top_k_accuracy_score(self.labels, self.scores, k=k) for k in (1, 5)]
        assert slip_score("kinetics700_frames", self.scores, self.labels) == pytest.approx(np.mean(top))

    def test_roc_auc_of_the_difference(self):
        scores, labels = self.scores[:, :2], self.labels % 2
        expected = roc_auc_score(labels, scores[:, 1] - scores[:, 0])
        assert slip_score("hateful_memes", scores, labels) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("scores", "labels", "message"),
        [
            (np.zeros((2, 3)), [0, 3], "class numbers from 0 to 2"),
            (np.zeros((2, 3)), [0], "got"),
            (np.full((1, 2), np.nan), [0], "NaN"),
        ],
    )
    def test_bad_input(self, scores, labels, message):
        with pytest.raises(ValueError, match=message):
            slip_score("food101", scores, labels)

    def test_one_class_has_no_roc(self):
        with pytest.raises(ValueError, match="ROC AUC needs"):
            slip_score("hateful_memes", np.zeros((3, 2)), [1, 1, 1])
