"""`load_public_dataset`: files, faults, splits, fractions, features and the kept results."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from fixtures.chexpert import TRAIN_ROWS, write_chexpert
from PIL import Image

from adaptor_hf.data import catalog, list_datasets, public_cache, public_datasets
from adaptor_hf.data.__main__ import main
from adaptor_hf.data.catalog import LoadedRows, PublicDataset
from adaptor_hf.data.dataset_pages import write_pages
from adaptor_hf.data.files import list_files, outside_root, read_table, to_numbers
from adaptor_hf.data.public_datasets import describe, load_public_dataset
from adaptor_hf.data.splits import split_hash
from adaptor_hf.data.target_features import BoxList, MultiLabel


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Registers a data set "toy" that returns the given rows, and writes their images."""

    def register(rows: list[dict], *, tasks=("classification",), write=True, **found) -> Path:
        root = tmp_path / "toy"
        root.mkdir(exist_ok=True)
        frame = pd.DataFrame(rows)
        for path in frame["image"] if write else ():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 6)).save(root / path)
        declared = {name: found.pop(name) for name in ("split_schemes", "leaks", "max_fault_share") if name in found}
        dataset = PublicDataset(
            name="toy", title="Toy", tasks=tasks, expected_files="", license="none", homepage="", tested="fixture",
            read=lambda request: LoadedRows(frame.copy(), **{"class_names": ["no", "yes"], **found}), **declared,
        )  # fmt: skip
        monkeypatch.setattr(public_datasets, "get_dataset", lambda name: dataset)
        return root

    return register


def rows(count: int, **columns) -> list[dict]:
    made = [
        {"image": f"images/{number:04}.png", "image_id": f"{number:04}", "patient_id": f"p{number // 2}",
         "labels": number % 2, "source": f"table.csv:{number + 1}"}
        for number in range(count)
    ]  # fmt: skip
    return [row | {name: value(number) for name, value in columns.items()} for number, row in enumerate(made)]


def load(root, **options):
    return load_public_dataset("toy", root, refresh=True, **options)


class TestFiles:
    def test_missing_and_empty_files_are_counted_and_left_out(self, toy, caplog):
        root = toy(rows(100))
        (root / "images/0003.png").unlink()
        (root / "images/0005.png").write_bytes(b"")
        parts = load(root)
        report = describe(parts)
        assert (report["missing_files"], report["empty_files"], report["rows"]) == (1, 1, 98)
        assert "0003" not in caplog.text

    def test_too_many_faults_stop_the_load_with_counts_and_examples(self, toy):
        root = toy(rows(20))
        for number in range(3):
            (root / f"images/{number:04}.png").unlink()
        with pytest.raises(ValueError, match=r"3 of 20 rows are faulty \(3 files missing, 0 of zero bytes") as e:
            load(root)
        assert "table.csv:1: expected the image images/0000.png, found no such file" in str(e.value)
        assert "max_fault_share=0.15 or more" in str(e.value)
        assert sum(map(len, load(root, max_fault_share=0.15).values())) == 17

    def test_a_root_without_any_image_is_said_to_be_wrong(self, toy):
        root = toy(rows(4), write=False)
        with pytest.raises(FileNotFoundError, match=r"None of the 4 image files is there .* Is this the right root"):
            load(root)

    def test_a_root_that_is_not_there(self, toy, tmp_path):
        toy(rows(4))
        with pytest.raises(FileNotFoundError, match=r"The root .*nowhere does not exist. Expected the folder of Toy"):
            load(tmp_path / "nowhere")

    @pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png", "C:\\b.png", "http://x/y.png"])
    def test_a_path_out_of_the_root_is_refused(self, toy, path):
        made = rows(4)
        root = toy(made)
        made[2]["image"] = path
        toy(made, write=False)
        with pytest.raises(ValueError, match=r"table.csv:3: the path .* leads out of the data set's folder"):
            load(root)

    def test_a_folder_that_is_a_link_is_followed(self, toy, tmp_path):
        root = toy(rows(4))
        (root / "images").rename(tmp_path / "disk")
        (root / "images").symlink_to(tmp_path / "disk")
        assert sum(map(len, load(root).values())) == 4

    def test_links_that_go_round_end(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a/x.png").write_bytes(b"x")
        (tmp_path / "a/back").symlink_to(tmp_path)
        (tmp_path / "a/._x.png").write_bytes(b"macOS")
        assert list(list_files(tmp_path).sizes) == ["a/x.png"]


class TestRules:
    def test_a_repeated_row_counts_once_and_contradicting_labels_not_at_all(self, toy):
        made = rows(40)
        made += [made[0], made[2] | {"labels": 1}]
        parts = load(toy(made), max_fault_share=0.06)
        report = describe(parts)
        assert report["dropped"] == {"repeats an earlier row": 1, "labels of one image contradict each other": 2}
        assert report["rows"] == 39

    def test_rows_that_agree_in_the_labels_are_no_contradiction(self, toy):
        made = rows(40, patient_id=lambda number: f"p{number}")
        # One image under three ids, of which the second has another image; one of two ids and two labels.
        made += [made[0] | {"patient_id": "p1"}, made[0] | {"patient_id": "p40"}]
        made += [made[2] | {"labels": 1 - made[2]["labels"], "patient_id": "p3"}]
        parts = load(toy(made), max_fault_share=0.06)
        report = describe(parts)
        assert report["dropped"] == {
            "labels of one image contradict each other": 2,
            "the image has these labels in an earlier row": 2,
        }
        assert any(note.startswith("2 patient ids are another id of a patient") for note in report["notes"])
        ids = {row["image_id"]: row["patient_id"] for part in parts.values() for row in part}
        assert len(ids) == report["rows"] == 39
        assert (ids["0000"], ids["0001"], ids["0003"]) == ("p0", "p0", "p3")
        assert "0002" not in ids

    def test_rows_without_what_the_task_needs_are_left_out(self, toy):
        made = rows(10, text=lambda number: "A text." if number else None)
        parts = load(toy(made, tasks=("pretraining",)))
        assert describe(parts)["dropped"] == {"no text": 1}

    def test_no_row_left_is_an_error(self, toy):
        root = toy(rows(4, labels=lambda number: None))
        with pytest.raises(ValueError, match="no row is left for classification"):
            load(root)

    def test_a_policy_needs_uncertain_labels(self, toy):
        root = toy(rows(4))
        with pytest.raises(ValueError, match=r"toy has no label_policy 'mgca'. Choose one of: raw"):
            load(root, label_policy="mgca")

    @pytest.mark.parametrize("box", [[5, 5, 5, 9], [0, 0, np.nan, 1], [4, 4, 2, 2]])
    def test_an_empty_box_is_refused(self, toy, box):
        root = toy(rows(4, boxes=lambda number: np.array([box], float)), tasks=("detection",))
        with pytest.raises(ValueError, match=r"table.csv:1: the box .* (is not finite|has no area or its corners)"):
            load(root)


class TestSplits:
    def test_by_patient_where_there_is_no_official_split(self, toy):
        parts = load(toy(rows(200)))
        patients = {name: set(part["patient_id"][:]) for name, part in parts.items()}
        assert all(5 <= len(patients[name]) <= 20 for name in ("validation", "test"))
        assert not patients["train"] & patients["test"]
        assert describe(parts)["split_scheme"] == "patient"

    def test_a_patient_is_in_one_part_whatever_rows_a_task_needs(self, toy):
        """Pre-training and a task on the same data set keep other rows, and must hold out the same patients."""
        every = load(toy(rows(200)))
        some = load(toy(rows(200, labels=lambda number: None if number % 3 else number % 2)))
        assert 0 < sum(map(len, some.values())) < 200
        for name, part in some.items():
            assert set(part["patient_id"][:]) <= set(every[name]["patient_id"][:])

    def test_the_hash_names_the_split_and_not_the_fraction(self, toy):
        root = toy(rows(200))
        whole, tenth, other = load(root), load(root, fraction=0.1), load(root, seed=1)
        assert describe(whole)["split_hash"] == describe(tenth)["split_hash"] != describe(other)["split_hash"]
        assert describe(whole)["split_hash"] == split_hash(datasets.concatenate_datasets(list(whole.values())))
        assert len(tenth["train"]) == 16
        assert tenth["test"]["image_id"][:] == whole["test"]["image_id"][:]

    def test_one_percent_lies_inside_ten(self, toy):
        root = toy(rows(2000))
        one, ten = (set(load(root, fraction=share)["train"]["image_id"][:]) for share in (0.01, 0.1))
        assert one < ten

    def test_an_official_split_that_overlaps_stops_unless_it_is_known_to(self, toy, caplog):
        made = rows(8, split=lambda number: ("train", "test")[number % 2])
        root = toy(made, split_schemes=("official",))
        with pytest.raises(ValueError, match="several parts of the split 'official': 4 in train and test"):
            load(root, validation_fraction=0.0)
        root = toy(made, split_schemes=("official", "theirs"), leaks={"theirs": "by image."})
        assert describe(load(root, split_scheme="theirs", validation_fraction=0.0))["overlaps"] == {"train and test": 4}
        assert "'theirs' is known to leak: by image. Here: 4 patients in train and test." in caplog.text

    def test_rows_in_no_part_are_counted(self, toy):
        made = rows(20, split=lambda number: None if number >= 18 else "train" if number < 14 else "test")
        parts = load(toy(made, split_schemes=("official",)))
        assert describe(parts)["dropped"] == {"in no part of the split 'official'": 2}
        assert len(parts["validation"]) == 2

    def test_rows_without_patient_are_said(self, toy):
        parts = load(toy(rows(20, patient_id=lambda number: None)))
        assert any("20 of 20 rows have no patient id" in note for note in describe(parts)["notes"])


class TestFeatures:
    def test_boxes_and_several_labels_survive_select_map_and_disk(self, toy, tmp_path):
        boxes = lambda number: np.array([[1, 2, 3, 4], [0, 0, 8, 6]][: number % 3], float).reshape(-1, 4)  # noqa: E731
        made = rows(30, boxes=boxes, a=lambda number: 1.0, b=lambda number: np.nan if number % 2 else -1.0)
        for row in made:
            del row["labels"]
        root = toy(made, tasks=("detection",), class_names=None, label_names=["a", "b"], box_class_names=["opacity"])
        train = load(root)["train"]
        assert isinstance(train.features["labels"], MultiLabel)
        assert train.features["labels"].names == ["a", "b"]
        train.map(lambda row: {"twice": len(row["boxes"]) * 2}).select([1, 0]).save_to_disk(tmp_path / "saved")
        again = datasets.load_from_disk(tmp_path / "saved")
        assert isinstance(again.features["boxes"], BoxList)
        assert again.features["labels"].names == ["a", "b"]
        assert again.features["box_labels"].feature.names == ["opacity"]
        for row, number in ((again[1], int(train[0]["image_id"])), (again[0], int(train[1]["image_id"]))):
            assert row["boxes"].shape == (number % 3, 4)
            assert row["boxes"].dtype == np.float32
            assert row["twice"] == 2 * len(row["boxes"])
            assert row["labels"][0] == 1.0
            assert np.isnan(row["labels"][1]) == bool(number % 2)
        import torch

        assert again.with_format("torch")[0]["boxes"].shape[1:] == torch.Size([4])
        assert again.with_format("numpy")[:]["labels"].shape == (len(again), 2)

    def test_a_row_with_another_number_of_labels_is_refused(self):
        with pytest.raises(ValueError, match="A row has 1 labels, expected 2: a, b"):
            MultiLabel(["a", "b"]).encode_example([1])
        with pytest.raises(ValueError, match=r"shape \(4,\), expected \(n, 4\)"):
            BoxList().encode_example([1, 2, 3, 4])

    def test_describe_says_so_of_another_data_set(self):
        with pytest.raises(ValueError, match="does not say how it was loaded"):
            describe(datasets.Dataset.from_dict({"a": [1]}))


class TestKeptResults:
    @pytest.fixture
    def counted(self, tmp_path, monkeypatch):
        """A CheXpert tree, a loader of it, and how often its tables were read."""
        root = write_chexpert(tmp_path / "chexpert")
        reads = []
        original = public_datasets.get_dataset("chexpert")
        monkeypatch.setattr(
            public_datasets,
            "get_dataset",
            lambda name: catalog.PublicDataset(
                **vars(original) | {"read": lambda request: reads.append(1) or original.read(request)}
            ),
        )
        return root, lambda **options: load_public_dataset("chexpert", root, **options), reads

    def test_the_second_load_reads_no_table_and_gives_the_same(self, counted):
        _, load, reads = counted
        first, second = load(), load()
        assert len(reads) == 1
        assert first["train"][:]["image_id"] == second["train"][:]["image_id"]
        assert describe(first) == describe(second)

    def test_other_options_and_refresh_load_anew(self, counted):
        _, load, reads = counted
        load(), load(seed=1), load(views="frontal"), load(refresh=True)
        assert len(reads) == 4

    def test_a_changed_table_a_new_file_and_a_lost_file_load_anew(self, counted):
        root, load, reads = counted
        load()
        table = root / "train.csv"
        table.write_text(table.read_text().replace("Female,68", "Female,69"))
        assert load(validation_fraction=0.0)["train"][0]["age"] == 69.0
        load()
        assert len(reads) == 3
        lost = root / TRAIN_ROWS[0].split(",")[0]
        lost.rename(root / "aside.jpg")
        assert describe(load(max_fault_share=0.5))["missing_files"] == 1
        (root / "aside.jpg").rename(lost)
        assert describe(load(max_fault_share=0.5))["missing_files"] == 0

    def test_a_half_written_result_is_not_taken(self, counted, tmp_path):
        _, load, reads = counted
        load(cache_dir=tmp_path / "cache")
        (folder,) = (tmp_path / "cache/adaptor_hf").iterdir()
        (folder / "inputs.arrow").write_bytes(b"")
        assert len(load(cache_dir=tmp_path / "cache")["test"]) == 2
        assert len(reads) == 2
        assert [path.name for path in (tmp_path / "cache/adaptor_hf").iterdir()] == [folder.name]

    def test_a_failed_write_leaves_nothing(self, counted, tmp_path, monkeypatch):
        _, load, _ = counted

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(public_cache, "_replace", fail)
        with pytest.raises(OSError, match="disk full"):
            load(cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache/adaptor_hf").iterdir()) == []

    @pytest.mark.parametrize("file", ["headings/en.json", "public/rsna.py", "public_rows.py", "catalog.py"])
    def test_other_code_or_headings_are_another_result(self, file, tmp_path, monkeypatch):
        package = tmp_path / "data"
        shutil.copytree(Path(public_cache.__file__).parent, package)
        monkeypatch.setattr(public_cache, "__file__", str(package / "public_cache.py"))
        before = public_cache._code_digest.__wrapped__()
        (package / file).write_bytes((package / file).read_bytes() + b"\n")
        assert public_cache._code_digest.__wrapped__() != before


class TestTables:
    def test_cells_are_exact_text_and_names_are_stripped(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid, Encoded ,note\n001, -1,"two\nlines"\n002,  ,x\n')
        table = read_table(tmp_path, "a.csv.gz", columns=["id", "Encoded"], optional=["note", "other"])
        assert table.to_dict("list") == {
            "id": ["001", "002"], "Encoded": ["-1", None], "note": ["two\nlines", "x"], "other": [None, None]
        }  # fmt: skip
        assert table.index.tolist() == [1, 2]
        assert table.attrs["file"] == "a.csv"

    def test_a_missing_table_says_what_is_there(self, tmp_path):
        (tmp_path / "train.csv").write_text("a\n1\n")
        with pytest.raises(FileNotFoundError, match=r"No table trian.csv .* right root.* Close: train.csv"):
            read_table(tmp_path, "trian.csv", columns=["a"])

    def test_a_column_that_is_there_twice_is_refused(self, tmp_path):
        (tmp_path / "a.csv").write_text("id, id\n1,2\n")
        with pytest.raises(ValueError, match="the column 'id' is there 2 times"):
            read_table(tmp_path, "a.csv", columns=["id"])

    def test_a_gzip_file_that_is_cut_short_is_named(self, tmp_path):
        import gzip

        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-100])
        with pytest.raises(ValueError, match=r"a.csv.gz: not readable to its end .* Is it fully downloaded"):
            read_table(tmp_path, "a.csv", columns=["id"])

    def test_a_number_that_is_none_is_named(self, tmp_path):
        (tmp_path / "a.csv").write_text("x\n1.5\n\nabc\n")
        table = read_table(tmp_path, "a.csv", columns=["x"])
        with pytest.raises(ValueError, match=r"a.csv, row 2, column 'x': found 'abc', expected a number"):
            to_numbers(table, "x")

    def test_paths_that_may_lead_out_of_the_root(self):
        inside, outside = ["a\\b..c.png", "a/b", "..a", None], ["../a", "a/../b", "/a", "C:\\a", "http://x/a", "a\0b"]
        found = outside_root(pd.Series([*inside, *outside]))
        assert found.tolist() == [False] * len(inside) + [True] * len(outside)


class TestCommand:
    def test_check_counts_what_is_there_and_writes_json(self, tmp_path, capsys):
        root = write_chexpert(tmp_path / "chexpert")
        (root / TRAIN_ROWS[1].split(",")[0]).write_bytes(b"\xff\xd8\xff truncated")
        (root / TRAIN_ROWS[2].split(",")[0]).unlink()
        assert main(["check", "chexpert", str(root), "--json", str(tmp_path / "x.json")]) == 1
        said, written = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
        assert "files missing: 1, of zero bytes: 0" in said
        assert "images and masks read: 7, unreadable: 1" in said
        assert (written["missing_files"], written["unreadable"], written["rows"], written["ok"]) == (1, 1, 7, False)
        assert written["labels"]["test"]["Cardiomegaly"] == {"positive": 1, "negative": 1, "uncertain": 0, "unknown": 0}
        assert written["patients_per_split"]["test"] == 2

    def test_a_whole_tree_is_ok(self, tmp_path, capsys):
        root = write_chexpert(tmp_path / "chexpert")
        assert main(["check", "chexpert", str(root), "--option", "views=frontal", "--read", "all"]) == 0
        assert capsys.readouterr().out.endswith("ok\n")

    def test_a_wrong_root_is_an_error(self, tmp_path, capsys):
        assert main(["check", "chexpert", str(tmp_path)]) == 2
        assert "error: No table train.csv" in capsys.readouterr().err

    def test_list_names_every_set(self, capsys):
        assert main(["list"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(list_datasets())


def test_the_pages_of_the_documentation_are_those_of_the_declarations(tmp_path):
    written = {path.name: path.read_text() for path in write_pages(tmp_path)}
    docs = Path(__file__).parents[1] / "docs" / "datasets"
    kept = {path.name: path.read_text() for path in docs.glob("*.md")}
    assert kept == written, "run: python -m adaptor_hf.data pages docs/datasets"
