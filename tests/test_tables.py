"""Tables in every supported container become the same pairs, exact to the letter; faults name their rows."""

import gzip
import json
import logging
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets.table import embed_table_storage
from PIL import Image

from adaptor_hf.data import delimited
from adaptor_hf.data.features import RadiographImage
from adaptor_hf.data.tables import COLUMNS, load_pairs
from adaptor_hf.tasks.data import load_table

TEXT = [
    "No focal consolidation. 1.5 cm nodule, unchanged.",
    'Kein Erguß; Herz normal groß.\r\nZweite Zeile "zitiert"',
    "  心影増大。胸水なし。 ",
    "e\u0301 is not \u00e9",
]
ROWS = pd.DataFrame(
    {
        "image": [f"images/{i}.png" for i in range(4)],
        "text": TEXT,
        "patient_id": ["007", "007", "08", "9"],
        "split": ["train", "val", "VALIDATE", "test"],
    }
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("L", (8, 6), 60 * i).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def write(folder, text, name="pairs.csv"):
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def save(frame, path):
    """The frame in the container that the path's name asks for, written by pandas."""
    name = path.name
    if ".csv" in name:
        frame.to_csv(path, index=False, lineterminator="\n")
    elif ".tsv" in name:
        frame.to_csv(path, index=False, sep="\t")
    elif ".jsonl" in name:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(path)
    return path


class TestContainers:
    @pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.tsv", "p.tsv.gz", "p.jsonl", "p.jsonl.gz", "p.parquet"])
    def test_every_file_type_gives_the_same_rows(self, folder, name):
        pairs = load_pairs(save(ROWS, folder / name))
        assert tuple(pairs.column_names) == COLUMNS
        assert pairs["text"][:] == TEXT
        assert pairs["patient_id"][:] == ["007", "007", "08", "9"]
        assert pairs["split"][:] == ["train", "validation", "validation", "test"]
        assert pairs["image_id"][:] == ROWS["image"].tolist()
        assert pairs["source_row"][:] == [0, 1, 2, 3]
        assert pairs["study_id"][:] == [None] * 4
        assert [np.asarray(image).max() for image in pairs["image"]] == [0, 60, 120, 180]

    def test_image_folder_with_metadata(self, folder):
        frame = ROWS.rename(columns={"image": "file_name"})
        save(frame, folder / "metadata.csv")
        assert np.asarray(load_pairs(folder)[3]["image"]).max() == 180

    def test_image_folder_with_split_folders(self, tmp_path):
        for split, value in (("train", 10), ("val", 20)):
            (tmp_path / split).mkdir()
            Image.new("L", (4, 4), value).save(tmp_path / split / "a.png")
            write(tmp_path / split, '{"file_name": "a.png", "text": "x"}\n', "metadata.jsonl")
        pairs = load_pairs(tmp_path)
        assert pairs["split"][:] == ["train", "validation"]
        assert pairs["image_id"][:] == ["train/a.png", "val/a.png"]
        assert [np.asarray(image).max() for image in pairs["image"]] == [10, 20]

    @pytest.mark.parametrize("feature", [datasets.Image(), RadiographImage(), datasets.Value("string")])
    def test_saved_data_set(self, folder, feature):
        rows = {"image": [str(folder / path) for path in ROWS["image"]], "text": TEXT, "patient_id": [7, 7, 8, 9]}
        features = {"image": feature, "text": datasets.Value("string"), "patient_id": datasets.Value("int64")}
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(folder / "saved")
        pairs = load_pairs(folder / "saved", filters=["patient_id=7", "patient_id=9"])
        assert pairs.features["image"] == RadiographImage()
        assert pairs["source_row"][:] == [0, 1, 3]
        assert pairs["patient_id"][:] == ["7", "7", "9"]
        assert pairs["text"][:] == [TEXT[0], TEXT[1], TEXT[3]]
        assert [np.asarray(image).max() for image in pairs["image"]] == [0, 60, 180]

    def test_data_set_dict_keys_are_the_split(self, folder):
        data = datasets.Dataset.from_dict({"image": [str(folder / "images/1.png")], "text": ["a"]})
        data = data.cast_column("image", datasets.Image())
        datasets.DatasetDict(train=data, valid=data).save_to_disk(folder / "saved")
        assert load_pairs(folder / "saved")["split"][:] == ["train", "validation"]
        assert load_pairs(datasets.DatasetDict(train=data))["split"][:] == [None]

    def test_parquet_with_embedded_images_as_on_the_hub(self, folder, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        data = datasets.Dataset.from_dict({"image": [str(folder / "images/2.png")] * 2, "text": ["a", None]})
        data.cast_column("image", datasets.Image()).to_parquet(folder / "p.parquet")
        pairs = load_pairs(folder / "p.parquet")
        assert np.asarray(pairs[0]["image"]).max() == 120
        assert pairs["text"][:] == ["a", None]
        assert pairs["image_id"][:] == ["0", "1"]

    def test_class_labels_are_read_by_name(self, folder):
        features = {"image": datasets.Value("string"), "text": datasets.Value("string")}
        features["split"] = datasets.ClassLabel(names=["test", "train"])
        rows = {"image": ["a", "b"], "text": ["a", "b"], "split": [1, 0]}
        data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        assert load_pairs(data)["split"][:] == ["train", "test"]

    def test_a_missing_table_is_not_looked_up_on_the_hub(self, tmp_path):
        for source in (tmp_path / "gone.csv", "gone.csv", "data/gone.parquet", "nothing", tmp_path / "no" / "folder"):
            with pytest.raises(FileNotFoundError, match="no such table"):
                load_pairs(source)
        with pytest.raises(FileNotFoundError, match="no table in this folder"):
            load_pairs(tmp_path)

    def test_an_unreachable_hub_id_says_so(self):
        with pytest.raises(FileNotFoundError, match="neither a file nor a folder here"):
            load_pairs("nobody/nothing")

    def test_an_unknown_file_type_is_refused_unless_a_separator_is_given(self, folder):
        path = write(folder, "image;text\na;b\n", "pairs.dat")
        with pytest.raises(ValueError, match="its separator is given with --delimiter"):
            load_pairs(path)
        assert load_pairs(path, sep=";")["text"][:] == ["b"]


class TestColumns:
    def test_options_name_columns_and_whitespace_in_the_header_is_ignored(self, folder):
        path = write(folder, "Path , report,subject,exam,fold,dicom, position\na.png,x,1,2,train,d1,PA\n")
        pairs = load_pairs(
            path,
            image_column="Path",
            text_column=" report ",
            patient_column="subject",
            study_column="exam",
            split_column="fold",
            id_column="dicom",
            view_column="position",
        )
        row = pairs.with_format("arrow").select_columns([c for c in COLUMNS if c != "image"])[:].to_pylist()[0]
        expected = ["d1", "1", "2", "PA", "x", "train", 0]
        assert list(row.values()) == expected

    def test_a_wrong_name_lists_the_columns_and_a_close_match(self, folder):
        path = save(ROWS, folder / "p.csv")
        with pytest.raises(
            ValueError, match=r"no column 'txt' \(text_column\). Did you mean 'text'.*'image', 'text', 'pat"
        ):
            load_pairs(path, text_column="txt")
        with pytest.raises(ValueError, match=r"no column 'image_path'.*Did you mean 'image'"):
            load_pairs(path, image_column="image_path")
        with pytest.raises(ValueError, match="patient_column"):
            load_pairs(path, patient_column="subject")

    def test_a_wrong_separator_is_named_and_a_double_column_refused(self, folder):
        with pytest.raises(ValueError, match="single column: name what separates its cells with --delimiter"):
            load_pairs(write(folder, "image;text\na;b\n"), sep=",")
        with pytest.raises(ValueError, match="'text' is there 2 times"):
            load_pairs(write(folder, "image,text, text\na,b,c\n"))

    def test_images_without_text(self, folder):
        assert load_pairs(write(folder, "image\na.png\n"), text_column=None)["text"][:] == [None]

    def test_images_stay_lazy(self, folder):
        pairs = load_pairs(write(folder, "image,text\ngone.png,x\n"))
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            pairs[0]["image"]


class TestValues:
    def test_missing_and_blank_texts_are_none_and_counted(self, folder, caplog):
        caplog.set_level(logging.INFO, "adaptor_hf")
        cells = ["", "   ", "nan", "NaN", "NA", '" \n "', "\u00a0", "None.", "No", "nano"]
        path = write(folder, "image,text\n" + "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells)))
        assert load_pairs(path)["text"][:] == [None] * 7 + ["None.", "No", "nano"]
        assert "7 of 10 rows have no text" in caplog.text

    def test_a_byte_order_mark_and_windows_line_ends(self, folder):
        pairs = load_pairs(write(folder, b"\xef\xbb\xbfimage,text\r\na.png,x\r\n\r\nb.png,y\r\n"))
        assert pairs["text"][:] == ["x", "y"]
        assert pairs["source_row"][:] == [0, 1]

    @pytest.mark.parametrize(
        ("cells", "expected"),
        [
            (["007", "8"], ["007", "8"]),
            (["1.0", "2.0", "", "3"], ["1", "2", None, "3"]),
            (["1.0", "1.5"], ["1.0", "1.5"]),
            (["1.0", "a"], ["1.0", "a"]),
            (["1.0", "a", "1"], ["1", "a", "1"]),
            ([" 5 ", "5"], ["5", "5"]),
            (["12345678901234567890"], ["12345678901234567890"]),
        ],
    )
    def test_ids_are_text(self, folder, cells, expected):
        path = write(folder, "image,text,patient_id\n" + "".join(f"{i},x,{cell}\n" for i, cell in enumerate(cells)))
        assert load_pairs(path)["patient_id"][:] == expected

    def test_numeric_ids_of_typed_files(self, folder):
        frame = ROWS.assign(patient_id=[1.0, 2.0, np.nan, 3.0], study_id=[50414267, 1, 2, 3])
        for name in ("p.parquet", "p.jsonl"):
            pairs = load_pairs(save(frame, folder / name))
            assert pairs["patient_id"][:] == ["1", "2", None, "3"]
            assert pairs["study_id"][:] == ["50414267", "1", "2", "3"]

    def test_dates_and_numbers_in_text_stay_as_written(self, folder):
        lines = [{"image": "a", "text": "2020-01-01T00:00:00Z"}, {"image": "b", "text": "1e3"}]
        path = write(folder, "\n".join(map(json.dumps, lines)), "p.jsonl")
        assert load_pairs(path)["text"][:] == ["2020-01-01T00:00:00Z", "1e3"]

    def test_line_breaks_inside_quotes_survive_the_readers_blocks(self, folder, monkeypatch):
        monkeypatch.setattr(delimited, "_BLOCK_BYTES", 1000)
        texts = [f"Findings {i}:\n\nclear,\n{'x' * (i % 50)}" for i in range(200)]
        frame = pd.DataFrame({"image": [f"{i}.png" for i in range(200)], "text": texts})
        assert load_pairs(save(frame, folder / "p.csv"))["text"][:] == texts

    def test_unknown_splits_name_their_rows(self, folder):
        path = write(folder, "image,text,split\na,x,train\nb,x,holdout\nc,x,\n")
        with pytest.raises(ValueError, match=r"unknown split 'holdout', \(empty\) in data rows 1, 2 \(0-based"):
            load_pairs(path)
        assert load_pairs(path, filters=["split=train"])["split"][:] == ["train"]


class TestFilters:
    TABLE = "image,text,set,view\na,1,x,PA\nb,2,x,AP\nc,3,y,PA\nd,4,z = w,PA\n"

    @pytest.mark.parametrize(
        ("filters", "rows"),
        [
            (["set=x"], [0, 1]),
            (["set=x", "view=PA"], [0]),
            (["set=x", "set=y"], [0, 1, 2]),
            (["set=x", "set=y", "view=PA"], [0, 2]),
            (["set=z = w"], [3]),
            ("view=PA", [0, 2, 3]),
            ([" set = y "], [2]),
        ],
    )
    def test_columns_are_and_values_of_one_column_are_or(self, folder, filters, rows):
        pairs = load_pairs(write(folder, self.TABLE), filters=filters)
        assert pairs["source_row"][:] == rows
        assert pairs["text"][:] == [str(row + 1) for row in rows]

    def test_faults(self, folder):
        path = write(folder, self.TABLE)
        with pytest.raises(ValueError, match=r"none of its 4 rows matches the filters \['set=q'\]"):
            load_pairs(path, filters=["set=q"])
        with pytest.raises(ValueError, match="not of the form column=value"):
            load_pairs(path, filters=["set"])
        with pytest.raises(ValueError, match=r"no column 'sett'.*Did you mean 'set'"):
            load_pairs(path, filters=["sett=x"])


class TestPaths:
    def test_relative_to_the_table_or_to_image_root(self, folder, monkeypatch):
        (folder / "tables").mkdir()
        path = save(ROWS, folder / "tables" / "p.csv")
        with pytest.raises(FileNotFoundError):
            load_pairs(path)[0]["image"]
        monkeypatch.chdir(folder.parent)
        pairs = load_pairs(path, image_root=folder.name)
        monkeypatch.chdir("/")
        assert pairs[1]["image"].size == (8, 6)

    @pytest.mark.parametrize("cell", ["../secret.png", "a/../../b.png", "..", "a\\..\\b.png", "images/.."])
    def test_leaving_the_root_is_refused(self, folder, cell):
        path = write(folder, f"image,text\nok..png,x\n{cell},x\n")
        with pytest.raises(ValueError, match=r'has "\.\." in data row 1 \(0-based'):
            load_pairs(path)

    @pytest.mark.parametrize("cell", ["https://example.org/a.png", "hf://datasets/a/b.png", "file:///etc/passwd"])
    def test_urls_are_refused(self, folder, cell):
        with pytest.raises(ValueError, match="is a URL in data row 0"):
            load_pairs(write(folder, f"image,text\n{cell},x\n"))

    def test_absolute_paths_only_under_a_given_root(self, folder):
        inside = write(folder, f"image,text\n{folder}/images/1.png,x\n")
        for root in (None, folder):
            pairs = load_pairs(inside, image_root=root)
            assert pairs[0]["image"].size == (8, 6)
            assert pairs["image_id"][:] == ["images/1.png"]
        with pytest.raises(ValueError, match="absolute and not under the image root"):
            load_pairs(inside, image_root=folder / "images" / "deeper")
        with pytest.raises(ValueError, match="absolute and not under the image root"):
            load_pairs(write(folder, f"image,text\n{folder}-other/1.png,x\n"), image_root=folder)

    def test_missing_cells_are_rows_without_image(self, folder):
        pairs = load_pairs(write(folder, "image,text\n,x\na.png,y\n"))
        assert pairs[0]["image"] is None
        assert pairs["image_id"][:] == ["0", "a.png"]

    def test_whitespace_around_a_path_is_stripped(self, folder):
        assert load_pairs(write(folder, 'image,text\n"images/1.png\n",x\n'))[0]["image"].size == (8, 6)


class TestFaults:
    @pytest.mark.parametrize("text", ["", "\n", "image,text\n"])
    def test_empty_tables(self, folder, text):
        with pytest.raises(ValueError, match=r"pairs\.csv: the table (is empty|has no rows)"):
            load_pairs(write(folder, text))

    def test_ragged_rows_name_the_row_and_never_the_report(self, folder):
        for bad, said in (("b.png,two,cells", "expected 2"), ("b.png", "expected 2"), ('"open,secret', "never closes")):
            path = write(folder, f"image,text\na.png,x\n{bad}\nsecret.png,y\n")
            with pytest.raises(ValueError, match=rf"data row 1 \(0-based.*{said}") as caught:
                load_pairs(path)
            assert "secret" not in str(caught.value)

    def test_other_encodings_name_line_and_byte(self, folder):
        for name in ("p.csv", "p.tsv", "p.jsonl"):
            data = "image,text\na,x\nb,Ergu\u00df\n".encode("latin-1")
            with pytest.raises(ValueError, match=r"line 3: byte 0xdf at offset \d+ is not UTF-8.*--encoding"):
                load_pairs(write(folder, data, name))
        assert load_pairs(write(folder, "image,text\na,x\n".encode("utf-16")))["text"][:] == ["x"]

    @pytest.mark.parametrize("line", ["{broken", "[1]", "7", '{"text": "a"} {"text": "b"}'])
    def test_bad_json_names_the_line(self, folder, line):
        path = write(folder, f'{{"image": "a", "text": "x"}}\n\n{line}\n', "p.jsonl")
        with pytest.raises(ValueError, match=r"p\.jsonl, line 3"):
            load_pairs(path)

    def test_half_a_surrogate_pair_is_refused(self, folder):
        with pytest.raises(ValueError, match="surrogate"):
            load_pairs(write(folder, '{"image": "a", "text": "\\ud800"}', "p.jsonl"))

    def test_columns_of_lists_and_objects_are_said_whatever_holds_them(self, folder):
        rows = [{"image": "a", "text": ["x", "y"]}]
        sources = [
            write(folder, json.dumps(rows[0]), "p.jsonl"),
            save(pd.DataFrame(rows), folder / "p.parquet"),
            datasets.Dataset.from_list(rows),
        ]
        for source in sources:
            with pytest.raises(ValueError, match=r"the column 'text' holds lists, expected a text or number"):
                load_pairs(source)
            assert load_pairs(source, text_column=None, image_mode="L")["image_id"][:] == ["a"]
        path = write(folder, '{"image": {"path": "a"}, "text": "x"}', "o.jsonl")
        with pytest.raises(ValueError, match=r"the column 'image' holds objects, expected a path"):
            load_pairs(path)
        with pytest.raises(ValueError, match=r"the column 'text' holds lists, .* --label_separator"):
            load_table(sources[0], label_columns=["text"], image_mode="L")

    def test_an_id_of_two_images_is_reported_with_both_rows_and_kept(self, folder, caplog):
        path = write(folder, "image,text,image_id\na.png,secret,1\nb.png,y,2\nc.png,z,1\n")
        pairs = load_pairs(path)
        assert len(pairs) == 3
        assert "share an image id but name different images: 0 and 2" in caplog.text
        assert "secret" not in caplog.text
        assert str(folder) not in caplog.text

    def test_a_repeated_row_is_reported_and_two_texts_of_one_image_are_not(self, folder, caplog):
        pairs = load_pairs(write(folder, "image,text\na.png,x\na.png,y\nb.png,\na.png,x\n"))
        assert len(pairs) == 4
        assert "repeat the same image and text: 0 and 3 (0-based" in caplog.text
        assert "different images" not in caplog.text


class TestRadiographImage:
    @pytest.fixture
    def pairs(self, folder):
        return load_pairs(save(ROWS, folder / "p.csv"))

    def values(self, data):
        return [int(np.asarray(image).max()) for image in data["image"]]

    def test_survives_what_datasets_does(self, pairs, tmp_path):
        assert self.values(pairs.select([2, 0])) == [120, 0]
        assert self.values(pairs.filter(lambda text: "cm" in text, input_columns="text")) == [0]
        mapped = pairs.map(lambda row: {"length": len(row["text"])})
        assert self.values(mapped) == [0, 60, 120, 180]
        assert self.values(pairs.map(lambda row: {"image": row["image"]})) == [0, 60, 120, 180]
        assert self.values(datasets.concatenate_datasets([pairs, pairs.select([3])])) == [0, 60, 120, 180, 180]
        assert self.values(pairs.shuffle(seed=0).sort("source_row").train_test_split(0.5, shuffle=False)["test"]) == [
            120,
            180,
        ]
        mapped.save_to_disk(tmp_path / "saved")
        again = datasets.load_from_disk(tmp_path / "saved")
        assert again.features["image"] == RadiographImage()
        assert self.values(again) == [0, 60, 120, 180]

    def test_stays_lazy_through_map_and_filter_of_other_columns(self, folder):
        pairs = load_pairs(write(folder, "image,text\ngone.png,x\n"))
        pairs = pairs.map(lambda text: {"n": len(text)}, input_columns="text").filter(
            lambda n: n == 1, input_columns="n"
        )
        assert pairs["n"][:] == [1]

    def test_decode_false_gives_path_and_bytes(self, pairs, folder):
        raw = pairs.cast_column("image", RadiographImage(decode=False))
        assert raw[1]["image"] == {"path": str(folder / "images/1.png"), "bytes": None}

    def test_mode_and_min_size_are_read_options_of_the_column(self, pairs, folder):
        assert pairs.cast_column("image", RadiographImage(mode="RGB"))[0]["image"].mode == "RGB"
        Image.new("L", (800, 800)).save(folder / "large.jpg")
        large = load_pairs(write(folder, "image,text\nlarge.jpg,x\n", "q.csv"))
        assert large.cast_column("image", RadiographImage(min_size=100))[0]["image"].size == (100, 100)

    def test_encodes_paths_bytes_arrays_and_pictures(self, folder):
        path = folder / "images/1.png"
        rows = [str(path), path, path.read_bytes(), np.full((6, 8), 60, np.uint8), Image.new("L", (8, 6), 60)]
        features = datasets.Features({"image": RadiographImage()})
        for row in rows:
            data = datasets.Dataset.from_list([{"image": row}], features=features)
            assert np.asarray(data[0]["image"]).max() == 60

    def test_embedding_keeps_the_bytes(self, pairs, folder):
        embedded = pairs.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        for file in (folder / "images").iterdir():
            file.unlink()
        assert self.values(embedded) == [0, 60, 120, 180]

    def test_loads_in_a_fresh_process(self, pairs, tmp_path):
        pairs.save_to_disk(tmp_path / "saved")
        code = (
            "import adaptor_hf.data.features, datasets;"
            f"print(datasets.load_from_disk({str(tmp_path / 'saved')!r})[1]['image'].size)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "(8, 6)"


class TestRealTable:
    def test_covidcxr_pairs(self, realbench):
        pairs = load_pairs(realbench / "metadata.csv", filters=["dataset=covidcxr"])
        reference = pd.read_csv(realbench / "metadata.csv", dtype=str, keep_default_na=False)
        reference = reference[reference["dataset"] == "covidcxr"]
        assert len(pairs) == 465
        assert pairs["source_row"][:] == reference.index.tolist()
        assert [text or "" for text in pairs["text"]] == reference["text"].tolist()
        assert pairs["patient_id"][:] == reference["patient_id"].tolist()
        assert pairs["split"][:].count("train") == 371
        assert pairs["split"][:].count("validation") == 94
        assert [view or "" for view in pairs["view"]] == reference["view"].tolist()
        assert all(min(pairs[i]["image"].size) == 256 for i in range(0, 465, 50))

    def test_leading_zeros_of_nih_ids(self, realbench):
        pairs = load_pairs(realbench / "metadata.csv", filters=["dataset=nih14"])
        assert all(len(patient) == 8 for patient in pairs["patient_id"])


def test_gzip_is_recognised_by_name_and_a_false_one_fails(folder):
    data = "image,text\na,x\n"
    (folder / "p.csv.gz").write_bytes(gzip.compress(data.encode()))
    assert load_pairs(folder / "p.csv.gz")["text"][:] == ["x"]
    with pytest.raises((ValueError, OSError)):
        load_pairs(write(folder, data, "false.csv.gz"))


@pytest.mark.parametrize("row", ["1,a", "1,a,,"])
def test_a_header_may_end_in_commas_that_the_rows_do_not_have(tmp_path, row):
    """As BBox_List_2017.csv of NIH ChestX-ray14 does."""
    path = tmp_path / "t.csv"
    path.write_text(f"id,name,,\n{row}\n")
    table = delimited.read_delimited(path, ",").table
    assert table.slice(0, 1).to_pylist()[0]["name"] == "a"
    path.write_text("id,name,,\n1,a,b\n")
    with pytest.raises(ValueError, match="3 cells, expected 4"):
        delimited.read_delimited(path, ",")
