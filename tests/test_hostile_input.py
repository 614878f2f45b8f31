"""Input made to harm: refused by row or by name, in seconds and in bounded memory."""

import gzip
import io
import json
import math
import struct
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from adaptor_hf import AdaptorConfig, AdaptorImageProcessor, AdaptorModel
from adaptor_hf.configs import read_recipe
from adaptor_hf.data import dicom
from adaptor_hf.data.dicom_headers import HeaderError, _parse
from adaptor_hf.data.images import image_size, read_image
from adaptor_hf.data.json_files import load_json
from adaptor_hf.data.label_columns import LabelRules, label_feature
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.privacy.asked import asked_for

HEADER = b"image,text,patient_id\n"
SHEET = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
SHEET_END = b"</sheetData></worksheet>"
# DICOM with a meta header of explicit little endian.
DICOM = (
    b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, 28)
    + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
)  # fmt: skip


class TestTables:
    @pytest.mark.parametrize("column", ["image", "text", "patient_id"])
    def test_a_cell_of_megabytes_is_refused_by_row(self, tmp_path, column):
        cells = {"image": "a.png", "text": "no finding", "patient_id": "1"}
        rows = [cells, cells | {column: "ab " * 1_000_000}]
        (tmp_path / "t.csv").write_bytes(HEADER + "".join(",".join(row.values()) + "\n" for row in rows).encode())
        with pytest.raises(ValueError, match=rf"characters in column '{column}', data row 1") as raised:
            load_pairs(tmp_path / "t.csv")
        assert len(str(raised.value)) < 500

    @pytest.mark.parametrize("column", ["image", "text", "patient_id"])
    def test_a_nul_is_refused_by_row(self, tmp_path, column):
        row = {"image": "a.png", "text": "no finding", "patient_id": "1"}
        rows = [row, row | {column: "a\0b"}]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ValueError, match=rf"NUL character in column '{column}', data row 1"):
            load_pairs(tmp_path / "t.jsonl")
        (tmp_path / "t.csv").write_bytes(HEADER + b"a.png,no\0 finding,1\n")
        with pytest.raises(ValueError, match="line 2: a NUL byte"):
            load_pairs(tmp_path / "t.csv")

    @pytest.mark.parametrize("piece", [b"x", b"x,", b"\0"])
    def test_a_file_without_line_ends_is_refused_from_its_beginning(self, tmp_path, piece):
        (tmp_path / "t.csv").write_bytes(piece * (2 << 20))
        with pytest.raises(ValueError, match=r"no line ends in its first 262,144 bytes|line 1: a NUL byte at offset 0"):
            load_pairs(tmp_path / "t.csv")

    def test_a_quote_that_takes_in_the_file_is_named_before_the_file_is_read(self, tmp_path):
        with open(tmp_path / "t.csv", "wb") as file:
            file.write(HEADER + b'a.png,"')
            for _ in range(60):
                file.write(b"x\n" * (1 << 19))
        with pytest.raises(ValueError, match=r"data row 0 .*a cell of over 16,777,216 characters. A quote"):
            load_pairs(tmp_path / "t.csv")

    def test_a_few_bytes_that_unpack_to_a_gigabyte(self, tmp_path):
        with gzip.open(tmp_path / "t.csv.gz", "wb", compresslevel=9) as file:
            for _ in range(300):
                file.write(b"x\n" * (1 << 19))
        with pytest.raises(ValueError, match="unpacks to over 268,435,456 bytes"):
            load_pairs(tmp_path / "t.csv.gz")

    @pytest.mark.parametrize("value", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "1" + "0" * 10_000, "1e999"])
    def test_deep_lists_and_huge_numbers_are_refused_by_line(self, tmp_path, value):
        line = '{"image": "a.png", "text": "no finding", "patient_id": 1}\n'
        (tmp_path / "t.jsonl").write_text(line + line.replace("1}", value + "}"))
        with pytest.raises(ValueError, match=r"t\.jsonl, line 2"):
            load_pairs(tmp_path / "t.jsonl")

    @pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\rb", "\u202egnp", "a" * 5000])
    def test_class_names_are_of_one_line(self, name):
        with pytest.raises(ValueError, match="1 classes of the label column 'finding'") as raised:
            label_feature({"finding": ["normal", name]}, [0, 1], "t.csv", LabelRules())
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 600


class TestWorkbooks:
    def workbook(self, folder: Path, sheet: bytes) -> Path:
        openpyxl = pytest.importorskip("openpyxl")
        plain = io.BytesIO()
        openpyxl.Workbook().save(plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(folder / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry, sheet if entry.filename.endswith("sheet1.xml") else source.read(entry))
        return folder / "t.xlsx"

    @pytest.mark.parametrize(
        ("sheet", "reason"),
        [
            (SHEET + b" " * (1 << 28) + SHEET_END, "unpacks to"),
            (SHEET + b'<row r="1"><c r="A1"><v>1</v></c></row><row r="1000000000"><c r="A1000000000"><v>1</v></c></row>'
             + SHEET_END, "a row number beyond"),
            (SHEET + b'<row r="1"><c r="XFD1"><v>1</v></c></row>'
             + b"".join(b'<row r="%d"><c r="A%d"><v>1</v></c></row>' % (n, n) for n in range(2, 5000)) + SHEET_END,
             "4,999 rows of 16,384 cells"),
            (b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
             + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(12)) + b"]>" + SHEET
             + b'<row r="1"><c r="A1" t="inlineStr"><is><t>&m;</t></is></c></row>' + SHEET_END,
             "not an Excel workbook"),
            (SHEET + b"<a>" * 200_000 + SHEET_END, "not an Excel workbook"),
        ],
        ids=["spaces", "row number", "wide", "entities", "deep"],
    )  # fmt: skip
    def test_small_files_of_large_tables(self, tmp_path, sheet, reason):
        path = self.workbook(tmp_path, sheet)
        assert path.stat().st_size < 1 << 20
        with pytest.raises(ValueError, match=reason) as raised:
            load_pairs(path)
        assert str(raised.value).startswith(str(path))


class TestJSONAndRecipes:
    @pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" + "0" * 10_000])
    def test_deep_json_is_named(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.json: not readable JSON"):
            load_json(tmp_path / "a.json", "a.json", dict, list)
        with pytest.raises(ValueError, match=r"a\.json"):
            read_recipe(tmp_path / "a.json")

    @pytest.mark.parametrize(
        "text",
        [
            "a: &a [1,2,3,4,5,6,7,8,9]\n"
            + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghij")),
            "a: &a {x: 1}\n"
            + "".join(f"{b}: &{b} {{<<: [{','.join(['*' + a] * 9)}]}}\n" for a, b in pairwise("abcdefghij")),
            "a: &a [*a]", "a: " + "[" * 10_000, "a: " + "b" * (2 << 20),
        ],
        ids=["lists", "merged", "itself", "deep", "long"],
    )  # fmt: skip
    def test_recipes_that_stand_for_much_are_named(self, tmp_path, text):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml.*(over|deeper)"):
            read_recipe(tmp_path / "a.yaml")
        # The gate of each command reads it first.
        assert not asked_for(["--recipe", str(tmp_path / "a.yaml")])

    def test_aliases_as_people_write_them_are_read(self, tmp_path):
        (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
        assert read_recipe(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


class TestConfigurations:
    @pytest.mark.parametrize(
        ("values", "name"),
        [
            ({"hidden_size": 12 * 10**11}, "hidden_size"), ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
            ({"num_hidden_layers": -1}, "num_hidden_layers"), ({"hidden_size": -12}, "hidden_size"),
            ({"vision_hidden_size": 10**12}, "vision_hidden_size"), ({"image_size": 10**9}, "image_size"),
            ({"logit_scale_init_value": math.nan}, "logit_scale"), ({"logit_scale_init_value": 1e30}, "logit_scale"),
            ({"layer_norm_eps": math.nan}, "layer_norm_eps"), ({"max_logit_scale": math.inf}, "max_logit_scale"),
            ({"text_config": {"model_type": "bert", "num_hidden_layers": 10**9}}, "text_config"),
            ({"vision_config": {"model_type": "dinov2", "hidden_size": 10**12}}, "vision_config"),
        ],
    )  # fmt: skip
    def test_what_no_model_has_is_refused_by_name(self, tmp_path, values, name):
        (tmp_path / "config.json").write_text(json.dumps(AdaptorConfig().to_dict() | values))
        with pytest.raises(Exception, match=name):
            AdaptorConfig(**values)
        with pytest.raises(ValueError, match=name):
            AdaptorModel.from_pretrained(tmp_path)

    def test_a_deep_configuration_names_its_folder(self, tmp_path):
        (tmp_path / "config.json").write_text('{"a":' * 100_000)
        with pytest.raises(ValueError, match=rf"{tmp_path}.*nested too deeply"):
            AdaptorModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        "values",
        [
            {"size": {"shortest_edge": 10**9}}, {"crop_size": {"height": 10**9, "width": 10**9}},
            {"size": {"height": -1, "width": 5}}, {"image_mean": [math.nan] * 3}, {"image_std": [0, 0, 0]},
        ],
    )  # fmt: skip
    def test_a_processor_of_absurd_values(self, values):
        with pytest.raises(ValueError, match=next(iter(values))):
            AdaptorImageProcessor(**values)(Image.new("L", (10, 20)), return_tensors="pt")


class TestDicom:
    @pytest.mark.parametrize(
        "content",
        [
            b"\0" * (40 << 20), b"\0" * 128 + b"DICM" + b"\0" * (40 << 20),
            DICOM + struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
            + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 2_000_000,
            DICOM + b"".join(struct.pack("<HH2sH", 9, n % 65_000, b"LO", 2) + b"a " for n in range(1_000_000)),
        ],
        ids=["zeros", "zeros with a mark", "items", "elements"],
    )  # fmt: skip
    def test_millions_of_elements_are_refused_after_some(self, tmp_path, monkeypatch, content):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.dcm: .*over 100,000 elements"):
            image_size(tmp_path / "a.dcm")
        monkeypatch.setattr(dicom, "MAX_READS", 3000)
        with pytest.raises(ValueError, match=r"a\.dcm: .*over 1,000 elements"):
            read_image(tmp_path / "a.dcm")

    def test_the_index_stops_there_too(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * (40 << 20))
        with pytest.raises(HeaderError, match="broken"):
            _parse(str(tmp_path / "a.dcm"), 40 << 20, "AccessionNumber")

    def test_deep_sequences_are_named(self, tmp_path):
        opened = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
            "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
        )
        (tmp_path / "a.dcm").write_bytes(DICOM + opened * 100_000)
        with pytest.raises(ValueError, match=r"a\.dcm: cannot be decoded"):
            read_image(tmp_path / "a.dcm")

    def test_an_image_file_of_gigabytes_is_refused_by_its_size(self, tmp_path):
        with open(tmp_path / "a.dcm", "wb") as file:
            file.truncate(1 << 41)
        with pytest.raises(ValueError, match="over the limit of 1,073,741,824"):
            read_image(tmp_path / "a.dcm")
