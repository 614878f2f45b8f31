"""OpenI: both releases give the same rows; texts, MeSH labels, missing sections and the published counts."""

import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fixtures.loaded import by_id
from fixtures.openi import write_kaggle, write_nlm

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.public.openi import image_key
from adaptor_hf.data.public_datasets import describe, load_public_dataset


@pytest.fixture(params=[write_kaggle, write_nlm])
def tree(request, tmp_path):
    return request.param(tmp_path / "openi")


def load(root, **options):
    return load_public_dataset("openi", root, cache_dir=root.parent / "cache", **options)


def read(root, task="pretraining", **options):
    dataset = get_dataset("openi")
    return dataset.read(Request(root, task, "patient", {**dataset.options, **options}))


def test_both_releases_have_the_same_images_and_texts(tree):
    splits = load(tree)
    rows = by_id(splits)
    assert sorted(rows) == ["1_IM-0001-3001", "1_IM-0001-4001", "2_IM-0652-1001", "4_IM-2050-1001"]
    frontal = rows["1_IM-0001-4001"]
    assert frontal["text"] == ("Normal chest x-XXXX. The lungs are clear. There are no XXXX of a pleural effusion.")
    assert frontal["sections"]["findings"] == "The lungs are clear. There are no XXXX of a pleural effusion."
    assert frontal["sections"]["indication"] == "Positive TB test"
    assert rows["2_IM-0652-1001"]["text"] == "Borderline cardiomegaly, 1.5 cm nodule."
    assert np.asarray(rows["2_IM-0652-1001"]["image"])[0, 0] == 20
    assert frontal["patient_id"] == frontal["study_id"] == "1"
    assert describe(splits)["dropped"]["no text"] == 1


def test_both_views_of_a_study_are_in_one_split(tree):
    rows = by_id(load(tree))
    assert rows["1_IM-0001-3001"]["split"] == rows["1_IM-0001-4001"]["split"]


def test_a_sentence_of_removed_words_only_goes_and_other_letters_stay(tree):
    assert by_id(load(tree))["4_IM-2050-1001"]["text"] == "Kein Erguß."


def test_the_token_goes_with_its_word_when_asked(tree):
    text = by_id(load(tree, deidentified="remove"))["1_IM-0001-4001"]["text"]
    assert text == "Normal chest. The lungs are clear. There are no of a pleural effusion."


def test_recipes_by_name(tree):
    text = by_id(load(tree, sentences="mgca"))["2_IM-0652-1001"]["text"]
    assert text == "borderline cardiomegaly 5 cm nodule"


def test_headings_of_mesh_terms_are_labels_and_unindexed_studies_have_none(tree):
    splits = load(tree, task="classification", label_min_count=1)
    names = next(iter(splits.values())).features["labels"].names
    assert names == ["Cardiomegaly", "Pulmonary Artery", "normal"]
    rows = by_id(splits)
    assert rows["2_IM-0652-1001"]["labels"] == [1, 1, 0]
    assert rows["3_IM-1384-1001"]["labels"] == [1, 0, 0]
    assert "4_IM-2050-1001" not in rows


def test_a_label_is_in_enough_images(tree):
    assert read(tree, "classification", label_min_count=2).label_names == ["Cardiomegaly", "normal"]
    with pytest.raises(ValueError, match="label_min_count"):
        read(tree, "classification", label_min_count=9)


def test_a_report_without_image_is_counted(tmp_path):
    found = read(write_nlm(tmp_path))
    assert found.dropped == {"a report without image": 1}
    assert found.table_rows == len(found.rows) + 1


def test_views(tmp_path):
    kaggle = write_kaggle(tmp_path / "kaggle")
    assert by_id(load(kaggle))["1_IM-0001-3001"]["view"] == "Lateral"
    assert "1_IM-0001-3001" not in by_id(load(kaggle, views="frontal"))
    with pytest.raises(ValueError, match="XML files do not say"):
        read(write_nlm(tmp_path / "nlm"), views="frontal")


def test_images_lie_elsewhere_in_a_mirror(tmp_path):
    root = write_kaggle(tmp_path / "openi")
    (root / "images" / "images_normalized").rename(root / "png")
    assert len(by_id(load(root))) == 4


class TestFaults:
    def test_a_missing_image_is_counted(self, tmp_path):
        root = write_kaggle(tmp_path / "openi")
        (root / "images/images_normalized/2_IM-0652-1001.dcm.png").unlink()
        with pytest.raises(ValueError, match=r"indiana_projections.csv:3.*2_IM-0652-1001.dcm.png"):
            load(root)
        assert describe(load(root, max_fault_share=0.5))["missing_files"] == 1

    def test_a_broken_xml_file_is_a_fault_that_names_it(self, tmp_path):
        root = write_nlm(tmp_path)
        (root / "ecgen-radiology" / "2.xml").write_text("<eCitation><uId")
        found = read(root)
        assert len(found.faults) == 1
        assert "ecgen-radiology/2.xml" in found.faults[0]

    def test_repeated_rows_and_images_without_report_are_counted(self, tmp_path):
        root = write_kaggle(tmp_path)
        with open(root / "indiana_projections.csv", "a") as file:
            file.write("1,1_IM-0001-4001.dcm.png,Frontal\n99,99_IM-1.dcm.png,Frontal\n")
        found = read(root)
        assert found.dropped == {
            "the same image twice in indiana_projections.csv": 1,
            "an image without a report of its uid": 1,
        }
        assert len(found.rows) == 5

    def test_a_changed_header(self, tmp_path):
        root = write_kaggle(tmp_path)
        table = root / "indiana_projections.csv"
        table.write_text(table.read_text().replace("projection", "view"))
        with pytest.raises(ValueError, match=r"_projections.csv: no column 'projection'.*Found: 'uid', 'filename'"):
            read(root)

    def test_a_wrong_root(self, tmp_path):
        (tmp_path / "other.csv").write_text("a\n")
        with pytest.raises(FileNotFoundError, match=r"indiana_reports\.csv.*other\.csv"):
            read(tmp_path)

    @pytest.mark.parametrize("option", ["deidentified", "views", "sentences"])
    def test_an_unknown_choice(self, tmp_path, option):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            read(write_kaggle(tmp_path), **{option: "some"})


def test_names_of_both_releases():
    assert image_key("CXR1_1_IM-0001-4001") == image_key("1_IM-0001-4001.dcm") == "1_IM-0001-4001"
    assert image_key("CXR2_IM-0652-1001") == image_key("2_IM-0652-1001.dcm") == "2_IM-0652-1001"
    assert image_key("CXR11_IM-0067-1001") == "11_IM-0067-1001"


def test_counts_of_the_published_reports(tmp_path):
    """The NLM reports are in the wheel of torchxrayvision: 3,955 reports, 104 of them without any of 7,470 images."""
    source = Path(find_spec("torchxrayvision").submodule_search_locations[0]) / "data" / "NLMCXR_reports.tgz"
    if not source.is_file():
        pytest.skip("this torchxrayvision has no NLMCXR_reports.tgz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    found = read(tmp_path)
    assert len(found.rows) == found.rows["image_id"].nunique() == 7470
    assert found.dropped == {"a report without image": 104}
    assert found.rows["study_id"].nunique() == 3955 - 104
    assert found.faults == []
    sections = found.rows.drop_duplicates("study_id")["sections"]
    # 28 of all reports have neither section; the three others are among those without image.
    assert sum(not {"findings", "impression"} & set(texts) for texts in sections) == 25
