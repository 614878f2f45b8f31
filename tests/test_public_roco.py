"""ROCO v1 and v2: exact captions, subsets by keyword, articles, concepts, images in zips, figures that are gone."""

import datasets
import numpy as np
import pandas as pd
import pytest
from fixtures.loaded import by_id
from fixtures.roco import write_v1, write_v2

from adaptor_hf.data.archives import parse_member
from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.public.roco import subset_mask
from adaptor_hf.data.public_datasets import describe, load_public_dataset


@pytest.fixture
def v1(tmp_path):
    return write_v1(tmp_path / "roco")


@pytest.fixture
def v2(tmp_path):
    return write_v2(tmp_path / "roco")


def load(name, root, **options):
    return load_public_dataset(name, root, cache_dir=root.parent / "cache", **options)


def read(name, root, task="pretraining", **options):
    dataset = get_dataset(name)
    return dataset.read(Request(root, task, "official", {**dataset.options, **options}))


class TestVersion1:
    def test_captions_lose_their_first_blank_and_keep_quotes_and_letters(self, v1):
        splits = load("roco", v1)
        assert {name: len(part) for name, part in splits.items()} == {"train": 4, "validation": 2, "test": 1}
        rows = by_id(splits)
        assert rows["ROCO_00002"]["text"] == 'Chest X-ray with a "coin" lesion, 1.5 cm.'
        assert rows["ROCO_00005"]["text"] == "Tomographie: radiographie du thorax, épanchement."
        assert np.asarray(rows["ROCO_00005"]["image"])[0, 0, 0] == 30
        assert rows["ROCO_00020"]["study_id"] == "PMC3970251"
        assert rows["ROCO_00020"]["source"] == "data/validation/radiology/captions.txt:1"

    @pytest.mark.parametrize("base", ["", "all_data"])
    def test_the_tree_may_be_the_root_or_a_folder_of_a_mirror(self, tmp_path, base):
        assert len(by_id(load("roco", write_v1(tmp_path / "roco", base=base)))) == 7

    @pytest.mark.parametrize(
        ("subset", "ids"),
        [
            ("mammo", ["ROCO_00003"]),
            ("mammo+xray", ["ROCO_00002", "ROCO_00003", "ROCO_00005", "ROCO_00027", "ROCO_00030"]),
        ],
    )
    def test_subsets_by_words_of_the_caption(self, v1, subset, ids):
        found = read("roco", v1, subset=subset)
        assert list(found.rows["image_id"]) == ids
        assert found.dropped == {f"not in the subset {subset}": 7 - len(ids)}

    @pytest.mark.parametrize(("figures", "count"), [("non-radiology", 3), ("all", 10)])
    def test_figures(self, v1, figures, count):
        assert len(read("roco", v1, figures=figures).rows) == count

    def test_licences(self, v1):
        found = read("roco", v1, licenses=["CC BY", "CC0"])
        assert found.dropped == {"licence that was not asked for": 2}
        assert "ROCO_00004" not in set(found.rows["image_id"])

    def test_the_official_split_is_said_to_leak_articles_and_the_other_is_by_article(self, v1, caplog):
        splits = load("roco", v1)
        assert describe(splits)["overlaps"]
        assert "known to leak" in caplog.text
        parts = pd.DataFrame(
            [(row["study_id"], row["split"]) for row in by_id(load("roco", v1, split_scheme="patient")).values()]
        )
        assert (parts.groupby(0)[1].nunique() == 1).all()

    def test_concepts_are_labels_counted_on_training_figures(self, v1):
        splits = load("roco", v1, task="classification", label_min_count=1)
        names = splits["train"].features["labels"].names
        assert names == ["C0024671", "C0040405", "C0817096", "C1306645"]
        assert by_id(splits)["ROCO_00002"]["labels"] == [0, 0, 1, 1]
        assert read("roco", v1, "classification", label_min_count=2).label_names == ["C1306645"]

    def test_figures_that_were_never_fetched_are_counted(self, v1):
        (v1 / "data/train/radiology/images/ROCO_00004.jpg").unlink()
        (v1 / "data/train/radiology/images/ROCO_00003.jpg").write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"data/train/radiology/captions.txt:3: expected the image .*ROCO_00004.jpg"
        ):
            load("roco", v1)
        report = describe(load("roco", v1, max_fault_share=0.5))
        assert (report["missing_files"], report["empty_files"]) == (1, 1)

    def test_licences_are_optional(self, v1):
        for path in v1.glob("data/*/*/licences.txt"):
            path.unlink()
        found = read("roco", v1)
        assert found.rows["study_id"].isna().all()
        assert "licences.txt is absent" in found.notes[0]

    def test_a_repeated_id_is_counted(self, v1):
        with open(v1 / "data/test/radiology/captions.txt", "a") as file:
            file.write("ROCO_00030\t Again.\n")
        assert read("roco", v1).dropped == {"id that an earlier row has": 1}

    def test_a_wrong_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train/radiology/captions.txt"):
            read("roco", tmp_path)


class TestVersion2:
    def test_images_are_read_from_the_zips(self, v2):
        splits = load("roco_v2", v2)
        assert {name: len(part) for name, part in splits.items()} == {"train": 2, "validation": 1, "test": 1}
        rows = by_id(splits)
        assert np.asarray(rows["ROCOv2_2023_train_000002"]["image"])[0, 0, 0] == 1
        assert rows["ROCOv2_2023_test_000001"]["text"] == 'MRI "T2"'

    def test_unpacked_images_are_the_same(self, v2, tmp_path):
        unpacked = by_id(load("roco_v2", write_v2(tmp_path / "unpacked", zipped=False)))
        for name, row in by_id(load("roco_v2", v2)).items():
            np.testing.assert_array_equal(row["image"], unpacked[name]["image"])

    def test_members_of_zips_survive_saving_selecting_and_embedding(self, v2, tmp_path):
        train = load("roco_v2", v2)["train"].select([1])
        train.save_to_disk(tmp_path / "saved")
        saved = datasets.load_from_disk(tmp_path / "saved")
        assert np.asarray(saved[0]["image"])[0, 0, 0] == 1
        from datasets.table import embed_table_storage

        table = embed_table_storage(saved.with_format("arrow")[:])
        value = table["image"][0].as_py()
        assert value["path"] == "ROCOv2_2023_train_000002.jpg"
        assert value["bytes"][:2] == b"\xff\xd8"

    def test_subset_and_concepts(self, v2):
        assert list(read("roco_v2", v2, subset="mammo+xray").rows["image_id"]) == [
            "ROCOv2_2023_train_000001",
            "ROCOv2_2023_valid_000001",
        ]
        every = read("roco_v2", v2, "classification", label_min_count=1)
        assert every.label_names == ["C0040405", "C0817096", "C1306645"]
        manual = read("roco_v2", v2, "classification", label_min_count=1, concepts="manual")
        assert manual.label_names == ["C0040405", "C1306645"]

    def test_an_image_that_the_zip_lacks_is_missing(self, v2):
        with open(v2 / "train_captions.csv", "a") as file:
            file.write("ROCOv2_2023_train_000003,Gone\n")
        paths = read("roco_v2", v2).rows.set_index("image_id")["image"]
        assert paths["ROCOv2_2023_train_000003"] == "train/ROCOv2_2023_train_000003.jpg"
        assert parse_member(paths["ROCOv2_2023_train_000001"]).archive == "train_images.zip"
        assert describe(load("roco_v2", v2, max_fault_share=0.3))["missing_files"] == 1

    def test_a_half_downloaded_zip(self, v2):
        path = v2 / "train_images.zip"
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match=r"train_images.zip: not a whole zip"):
            read("roco_v2", v2)

    def test_a_changed_header(self, v2):
        path = v2 / "test_captions.csv"
        path.write_text(path.read_text().replace("Caption", "caption"))
        with pytest.raises(ValueError, match=r"test_captions.csv: no column 'Caption'.*Found: 'ID', 'caption'"):
            read("roco_v2", v2)


def test_keywords():
    captions = pd.Series(
        [
            *("Chest x-ray", "X ray", "chestxray", "X\u2010ray", "Radiographie", "roentgenogram", "Mammographic"),
            *("array of CT", "phased-array coil", "breast MRI", None),
        ]
    )
    assert list(subset_mask(captions, "mammo+xray")) == [True] * 7 + [False] * 4
    assert list(subset_mask(captions, "mammo")) == [False] * 6 + [True] + [False] * 4
    assert subset_mask(captions, "all").all()
    with pytest.raises(ValueError, match="subset must be one of"):
        subset_mask(captions, "xray")
