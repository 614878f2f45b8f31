"""CheXpert: tables as published, label values, the splits of MGCA and LoVT."""

import numpy as np
import pytest
from fixtures.chexpert import HEADER, TRAIN_ROWS, VALID_ROWS, write_chexpert
from fixtures.real_tables import real_table

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.labels import CHEXPERT_LABELS, COMPETITION_LABELS
from adaptor_hf.data.public.chexpert import five_by_200_candidates, read_part
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(root, **options):
    return load_public_dataset("chexpert", root, **options)


@pytest.fixture
def root(tmp_path):
    return write_chexpert(tmp_path / "chexpert")


class TestRows:
    def test_the_first_row_of_the_real_file(self, root):
        row = load(root, validation_fraction=0.0)["train"][0]
        assert (row["patient_id"], row["study_id"], row["view"]) == ("patient00001", "patient00001/study1", "AP")
        assert (row["sex"], row["age"], row["source"]) == ("F", 68.0, "train.csv:1")
        assert row["image"].size == (39, 32)
        labels = dict(zip(CHEXPERT_LABELS, row["labels"], strict=True))
        assert {name: value for name, value in labels.items() if value == value} == {
            "No Finding": 1.0,
            "Pneumothorax": 0.0,
            "Support Devices": 1.0,
        }

    def test_the_archives_folder_is_dropped_whatever_the_root_is_called(self, tmp_path):
        for prefix in ("CheXpert-v1.0", "CheXpert-v1.0-small", "some/where/CheXpert-v1.0"):
            root = write_chexpert(tmp_path / prefix.replace("/", "-"), prefix=prefix)
            assert load(root, validation_fraction=0.0)["train"].num_rows == len(TRAIN_ROWS)

    def test_valid_csv_is_the_test_part_and_validation_comes_from_training_patients(self, root):
        parts = load(root)
        assert {name: len(part) for name, part in parts.items()}["test"] == len(VALID_ROWS)
        assert set(parts["validation"]["patient_id"][:]).isdisjoint(parts["train"]["patient_id"][:])
        assert any("has no validation part" in note for note in describe(parts)["notes"])

    def test_frontal_views_go_by_the_column_not_by_the_name_or_the_projection(self, root):
        train = load(root, views="frontal", validation_fraction=0.0)["train"]
        assert train["view"][:] == ["AP", "AP", "AP", "LL", "PA"]

    def test_only_the_five_labels_of_the_competition(self, root):
        train = load(root, labels="competition", validation_fraction=0.0)["train"]
        assert train.features["labels"].names == list(COMPETITION_LABELS)
        assert np.array(train["labels"][:]).shape[1] == 5

    def test_rows_without_any_of_these_labels_are_left_out_and_counted(self, root):
        parts = load(root, labels="competition", validation_fraction=0.0)
        assert describe(parts)["dropped"] == {"no label": 1}

    def test_a_policy_keeps_rows_that_were_blank(self, root):
        parts = load(root, labels="competition", label_policy="mgca", validation_fraction=0.0)
        train = parts["train"]
        assert len(train) == len(TRAIN_ROWS)
        # The second row: -1 for Cardiomegaly, Consolidation, Edema, Atelectasis and Pleural Effusion.
        assert dict(zip(train.features["labels"].names, train[1]["labels"], strict=True)) == {
            "Atelectasis": 1.0,
            "Cardiomegaly": 0.0,
            "Consolidation": 0.0,
            "Edema": 1.0,
            "Pleural Effusion": 1.0,
        }


class TestFaults:
    def test_a_changed_header(self, root):
        path = root / "train.csv"
        path.write_text(path.read_text().replace("Pleural Effusion", "Effusion"))
        with pytest.raises(ValueError, match=r"train.csv: no column 'Pleural Effusion'. Expected: .* Found: 'Path', "):
            load(root)

    def test_a_label_that_is_none(self, root):
        row = TRAIN_ROWS[0].replace("AP,1.0", "AP,2.0")
        (root / "train.csv").write_text(f"{HEADER}\nCheXpert-v1.0/{row}\n")
        with pytest.raises(ValueError, match=r"train.csv, row 1, column 'No Finding': found '2.0', expected one of 1"):
            load(root)

    def test_a_path_of_another_form(self, root):
        (root / "train.csv").write_text(f"{HEADER}\n{TRAIN_ROWS[0].replace('patient00001', '../patient')}\n")
        with pytest.raises(ValueError, match=r"train.csv, row 1, column 'Path'"):
            load(root)

    def test_the_5x200_set_needs_the_real_table(self, root):
        with pytest.raises(ValueError, match="needs 200 rows of Atelectasis alone, found 0"):
            load(root, split_scheme="mgca")

    @pytest.mark.parametrize("option", ["views", "labels"])
    def test_an_unknown_option_value(self, root, option):
        with pytest.raises(ValueError, match=f"option {option} must be"):
            load(root, **{option: "x"})


class TestRealTable:
    """The published train.csv, which torchxrayvision carries; images are not needed to read tables."""

    @pytest.fixture(scope="class")
    def tables(self, tmp_path_factory):
        root = write_chexpert(tmp_path_factory.mktemp("real"))
        real_table("chexpert_train.csv.gz", root / "train.csv")
        return root

    @pytest.fixture(scope="class")
    def training(self, tables):
        return read_part(tables, "train.csv")

    def test_counts(self, training):
        assert len(training) == 223_414
        assert training["patient_id"].nunique() == 64_540
        assert training["study_id"].nunique() == 187_641
        assert training["frontal"].sum() == 191_027
        assert training["image"].is_unique

    @pytest.mark.parametrize(
        ("label", "blank", "negative", "positive", "uncertain"),
        [
            ("No Finding", 201_033, 0, 22_381, 0),
            ("Edema", 137_458, 20_726, 52_246, 12_984),
            ("Consolidation", 152_792, 28_097, 14_783, 27_742),
            ("Support Devices", 100_197, 6_137, 116_001, 1_079),
        ],
    )
    def test_label_counts(self, training, label, blank, negative, positive, uncertain):
        values = training[label]
        counts = (values.isna().sum(), (values == 0).sum(), (values == 1).sum(), (values == -1).sum())
        assert counts == (blank, negative, positive, uncertain)

    def test_candidates_of_the_5x200_set(self, training):
        sizes = {name: len(places) for name, places in five_by_200_candidates(training).items()}
        assert sizes == dict(zip(COMPETITION_LABELS, (1087, 1034, 537, 2257, 2425), strict=True))

    @pytest.mark.parametrize(("views", "train", "validation"), [("all", 217_433, 5000), ("frontal", 185_771, 4284)])
    def test_mgca_split_as_its_code_runs(self, tables, views, train, validation):
        found = get_dataset("chexpert").read(
            Request(tables, "classification", "mgca", {"views": views, "labels": "all"})
        )
        parts = {name: set(part["image_id"]) for name, part in found.rows.groupby("split")}
        assert (len(parts["train"]), len(parts["validation"])) == (train, validation)
        if views == "all":
            assert len(parts["train"] & parts["validation"]) == 4907

    def test_lovt_validation_is_the_first_patients_with_5000_images(self, tables):
        found = get_dataset("chexpert").read(
            Request(tables, "classification", "lovt", {"views": "all", "labels": "all"})
        )
        parts = dict(list(found.rows.groupby("split")))
        held_out = parts["validation"]
        assert set(held_out["patient_id"]).isdisjoint(parts["train"]["patient_id"])
        assert held_out["patient_id"].max() < parts["train"]["patient_id"].min()
        last = held_out["patient_id"] == held_out["patient_id"].max()
        assert len(held_out) >= 5000 > len(held_out) - last.sum()
