"""CheXpert 5x200: rows with one finding alone, by MGCA's rule or from a list."""

import pytest
from fixtures.chexpert import HEADER
from fixtures.pictures import write_picture
from fixtures.real_tables import real_table

from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.labels import COMPETITION_LABELS
from adaptor_hf.data.public_datasets import load_public_dataset

COLUMNS = HEADER.split(",")[5:]
LIST_HEADER = f",imgpath,{HEADER.partition(',')[2]},subject_id"


def cells(positive, **others):
    values = {name: others.get(name.replace(" ", "_"), "") for name in COLUMNS}
    values[positive] = "1.0"
    return ",".join(values.values())


@pytest.fixture
def tree(tmp_path):
    """Three candidates of each class, and rows that are none: lateral, uncertain, two findings."""
    root, rows = tmp_path / "CheXpert-v1.0-small", []
    for number, name in enumerate(COMPETITION_LABELS):
        for place in range(6):
            path = f"train/patient{10 * number + place:05d}/study1/view1_frontal.jpg"
            side, others = ("Lateral" if place == 3 else "Frontal"), {}
            if place == 4:
                others = {"Fracture": "-1.0"}
            if place == 5:
                others = {"Lung_Lesion": "1.0"}
            if place == 2:
                others = {"No_Finding": "1.0", "Edema" if name != "Edema" else "Pneumonia": "0.0"}
            rows.append(f"CheXpert-v1.0-small/{path},Female,60,{side},AP,{cells(name, **others)}")
            write_picture(root / path, place)
    (root / "train.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return root


def load(root, **options):
    return load_public_dataset("chexpert_5x200", root, cache_dir=root.parent / "cache", **options)


def read(root, **options):
    dataset = get_dataset("chexpert_5x200")
    return dataset.read(Request(root, "classification", "official", {**dataset.options, **options}))


def test_rows_with_one_finding_alone_are_test_rows(tree):
    splits = load(tree, per_class=3)
    assert list(splits) == ["test"]
    test = splits["test"]
    assert test.features["labels"].names == list(COMPETITION_LABELS)
    assert {(row["labels"], row["patient_id"]) for row in test} == {
        (number, f"patient{10 * number + place:05d}") for number in range(5) for place in range(3)
    }
    assert set(test["text"]) == {name.lower() for name in COMPETITION_LABELS}


def test_the_text_of_a_class(tree):
    texts = set(load(tree, per_class=1, text="A radiograph with {}.")["test"]["text"])
    assert "A radiograph with pleural effusion." in texts
    with pytest.raises(ValueError, match="text must be a sentence"):
        read(tree, text="{name}")


def test_it_is_a_retrieval_set_too(tree):
    assert len(load(tree, task="pretraining", per_class=2)["test"]) == 10


def test_too_few_candidates(tree):
    with pytest.raises(ValueError, match="needs 200 rows of Atelectasis alone, found 3"):
        read(tree)


class TestLists:
    def write(self, tree, rows, name="chexpert-5x200-val-meta.csv", header=LIST_HEADER):
        (tree / name).write_text("\n".join([header, *rows]) + "\n")

    def row(self, positive, path="train/patient00001/study1/view1_frontal.jpg", side="Frontal,AP", number=7, **others):
        labels = cells(positive, **others).replace(",,", ",0.0,")
        return f"{number},./data/CheXpert/CheXpert-v1.0-small/{path},Female,27,{side},{labels},patient00001-study1"

    def test_medclips_list_with_a_lateral_view(self, tree):
        lateral = "train/patient00002/study1/view1_frontal.jpg"
        self.write(tree, [self.row("Edema"), self.row("Pleural Effusion", lateral, "Lateral,0")])
        test = load(tree)["test"]
        assert [(row["labels"], row["view"]) for row in test] == [(3, "AP"), (4, "lateral")]
        assert test[1]["image_id"] == lateral
        assert test[1]["study_id"] == "patient00002/study1"
        assert "1 of 2 views are lateral" in read(tree).notes[0]

    def test_reports_of_a_list(self, tree):
        header = LIST_HEADER + ",report"
        self.write(tree, [self.row("Edema") + ",Mild edema.", self.row("Edema", number=8) + ","], header=header)
        assert list(read(tree).rows["text"]) == ["Mild edema.", "edema"]

    def test_a_row_with_two_classes(self, tree):
        self.write(tree, [self.row("Edema"), self.row("Edema", Atelectasis="1.0")])
        with pytest.raises(ValueError, match=r"val-meta\.csv, row 2: .* found Atelectasis, Edema"):
            read(tree)

    def test_a_path_of_another_form(self, tree):
        self.write(tree, [self.row("Edema", "elsewhere/1.jpg")])
        with pytest.raises(ValueError, match=r"row 1, column 'imgpath'.*elsewhere/1\.jpg"):
            read(tree)
        self.write(tree, [self.row("Edema")], header=LIST_HEADER.replace("imgpath", "file"))
        with pytest.raises(ValueError, match="no column imgpath or Path"):
            read(tree)


def test_counts_of_the_published_table(tmp_path):
    """1,087 / 1,034 / 537 / 2,257 / 2,425 candidates; MGCA's 1,000 rows are of 969 patients."""
    real_table("chexpert_train.csv.gz", tmp_path / "train.csv")
    found = read(tmp_path)
    assert found.notes == [
        "Rows with one finding alone, before drawing: Atelectasis 1087, Cardiomegaly 1034, Consolidation 537, Edema "
        "2257, Pleural Effusion 2425."
    ]
    assert found.rows["labels"].value_counts().to_dict() == dict.fromkeys(range(5), 200)
    assert found.rows["patient_id"].nunique() == 969
    assert found.table_rows == 223_414
