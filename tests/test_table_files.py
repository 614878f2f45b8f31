"""Delimited tables, workbooks and paths as people export them: read exactly, or refused by row and by name."""

import csv
import datetime
import gzip
import io
import logging
import random
import sys

import openpyxl
import pandas as pd
import pytest
from PIL import Image

from adaptor_hf.data import delimited
from adaptor_hf.data.__main__ import main
from adaptor_hf.data.check_table import check_table
from adaptor_hf.data.delimited import read_delimited
from adaptor_hf.data.files import read_table
from adaptor_hf.data.image_formats import foreign_format
from adaptor_hf.data.images import read_image
from adaptor_hf.data.pacs.reports_table import read_report_table
from adaptor_hf.data.public.rsna import read_match
from adaptor_hf.data.tables import load_pairs

SECRET = "Herr Geheim"


@pytest.fixture
def put(tmp_path):
    def write(data, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def cells(path, **options):
    found = read_delimited(path, **options).table
    return [
        found.column_names,
        *(list(row) for row in zip(*(column.to_pylist() for column in found.columns), strict=True)),
    ]


READERS = {
    "pairs": lambda path: load_pairs(path, image_mode="L"),
    "public set": lambda path: read_table(path.parent, path.name, columns=("image", "text")),
    "reports": lambda path: read_report_table(path, "image"),
    "check": check_table,
    "RSNA's match": lambda path: read_match(path.parent, path.name),
}


class TestFaults:
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (f'2,"{SECRET}\n3,x\n4,y\n', r"line 4\): a quote opens there and never closes, .* all 2 lines"),
            (f'2,"{SECRET}\n3,"x"\n4,y\n', r"line 4\): text follows a closing quote in line 5"),
            (f'2,"Herz" {SECRET}\n3,x\n', r"line 4\): text follows a closing quote in line 4"),
            (f"2,{SECRET},x\n3,x\n", r"line 4\): 3 cells, expected 2"),
            ("2\n3,x\n", r"line 4\): 1 cell, expected 2"),
            ("2", r"line 4\): 1 cell, expected 2.*last row and has no line end"),
            (f'2,"{SECRET}', r"line 4\): a quote opens there and never closes.*cut off"),
        ],
    )
    def test_every_reader_names_the_row_and_never_a_cell(self, put, reader, bad, said):
        """A legitimate line break in quotes before it: data row 1 begins in line 4."""
        path = put('image,text\n1,"a\nb"\n' + bad)
        with pytest.raises(ValueError, match=r"data row 1 \(0-based, header not counted; " + said) as caught:
            READERS[reader](path)
        assert SECRET not in str(caught.value)

    def test_faults_far_below_and_in_compressed_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(delimited, "_BLOCK_BYTES", 500)
        rows = [f'{n}.png,"Text {n}\nof two lines"' for n in range(300)]
        rows[200] = '200.png,"Text 200\nof two lines'
        path = tmp_path / "t.csv.gz"
        path.write_bytes(gzip.compress("\n".join(["image,text", *rows]).encode()))
        with pytest.raises(ValueError, match=r"data row 200 .*line 402"):
            load_pairs(path)

    def test_what_python_writes_is_read_as_python_reads_it(self, put, monkeypatch):
        """Random cells of awkward characters; the second implementation is Python's csv."""
        monkeypatch.setattr(delimited, "_BLOCK_BYTES", 40)
        draw = random.Random(0)
        for trial in range(150):
            width = draw.randint(1, 4)
            rows = [
                ["".join(draw.choices('ab",\n\r\t; é"', k=draw.randint(0, 6))) for _ in range(width)]
                for _ in range(draw.randint(2, 12))
            ]
            rows[0] = [f"c{place}" for place in range(width)]
            text = io.StringIO()
            ends = draw.choice(["\n", "\r\n"])
            quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
            csv.writer(text, lineterminator=ends, quoting=quoting).writerows(rows)
            # A line without any character is no row.
            expected = [row for row in csv.reader(io.StringIO(text.getvalue(), newline=""), strict=True) if row]
            path = put(text.getvalue())
            if any(len(row) != width for row in expected):
                # A carriage return that `csv` wrote without quotes ends a row.
                with pytest.raises(ValueError, match="expected"):
                    read_delimited(path, ",")
            else:
                assert cells(path, sep=",") == expected, trial

    def test_quotes_inside_unquoted_cells_are_characters(self, put):
        assert cells(put('a,b\n1,5" tube\n"2",x "y", \n'.replace(", \n", "\n"))) == [
            ["a", "b"], ["1", '5" tube'], ["2", 'x "y"'],
        ]  # fmt: skip

    def test_no_byte_of_a_line_end_is_lost_at_a_border_of_blocks(self, put, monkeypatch):
        """Arrow drops the line feed of a CRLF that its blocks divide (apache/arrow#51368): borders at every offset."""
        rows = [[f"{n}.png", f"first {n}\r\nsecond\rthird\n\r\nlast"] for n in range(6)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerows([["image", "text"], *rows])
        path = put(text.getvalue())
        for size in range(1, 120):
            monkeypatch.setattr(delimited, "_BLOCK_BYTES", size)
            assert cells(path)[1:] == rows, size


class TestForm:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    @pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("statement", [False, True])
    def test_separator_and_marks_are_found_and_said(self, put, caplog, encoding, separator, statement):
        caplog.set_level(logging.INFO)
        rows = [["image", "text"], ["1.png", "Größe 3,5 cm; li.\nre. | ok"], ["2.png", "x"]]
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator="\r\n").writerows(rows)
        path = put((f"sep={separator}\r\n" * statement + text.getvalue()).encode(encoding))
        for _ in range(2):
            pairs = load_pairs(path, image_mode="L")
        assert pairs["text"][:] == [row[1] for row in rows[1:]]
        if separator != "," and not statement:
            assert caplog.text.count("is separated by") == 1
        if "8" not in encoding:
            assert caplog.text.count(f"is read as {encoding.upper()}") == 1
        assert str(path.parent) not in caplog.text

    def test_a_separator_in_doubt_is_asked_for(self, put, capsys):
        path = put("image;text, cleaned\n1.png;No effusion, no edema\n2.png;a, b\n")
        with pytest.raises(ValueError, match=r"could be separated by comma and semicolon.*--delimiter"):
            load_pairs(path)
        assert load_pairs(path, sep="semicolon", text_column="text, cleaned", image_mode="L")["text"][1] == "a, b"
        assert main(["check", "--table", str(path)]) == 2
        assert "--delimiter" in capsys.readouterr().err
        main(["check", "--table", str(path), "--delimiter", ";", "--text_column", "text, cleaned"])
        assert "rows: 2, without text 0" in capsys.readouterr().out

    def test_a_mark_of_punctuation_in_a_header_is_no_separator(self, put):
        assert cells(put("image,text (a;b)\n1,x\n2,y\n"))[0] == ["image", "text (a;b)"]
        assert cells(put("image\ttext, cleaned\n1\tx, y\n", "t.tsv"))[1] == ["1", "x, y"]
        assert cells(put("image\n1.png\n"))[1] == ["1.png"]

    def test_a_statement_that_contradicts_the_option(self, put):
        with pytest.raises(ValueError, match="first line says sep=;"):
            load_pairs(put("sep=;\nimage;text\n1;x\n"), sep=",")
        with pytest.raises(ValueError, match="one character or one of comma"):
            load_pairs(put("image,text\n1,x\n"), sep="<>")

    @pytest.mark.parametrize(
        ("data", "said", "option"),
        [
            (
                "image,text\n1,Größe\n".encode("cp1252"),
                r"line 2: byte 0xf6 at .* not UTF-8.*windows-1252",
                "windows-1252",
            ),
            ("image,text\n1,Größe\n".encode("utf-16-le"), "looks like UTF-16-LE without.*utf-16-le", "utf-16-le"),
            ("image,text\n1,Größe\n".encode("utf-16-be"), "looks like UTF-16-BE without.*utf-16-be", "utf-16-be"),
        ],
    )
    def test_the_advice_for_an_encoding_works(self, put, data, said, option):
        path = put(data)
        with pytest.raises(ValueError, match=said) as caught:
            load_pairs(path)
        assert ("windows-1252" in str(caught.value)) == (option == "windows-1252")
        assert load_pairs(path, encoding=option, image_mode="L")["text"][:] == ["Größe"]

    def test_a_wrong_encoding_is_refused(self, put):
        path = put("image,text\n1,Größe\n".encode("utf-16"))
        with pytest.raises(ValueError, match="byte-order mark of UTF-16, so it is not windows-1252"):
            load_pairs(path, encoding="windows-1252")
        with pytest.raises(ValueError, match=r"'utf-9' .*is unknown"):
            load_pairs(path, encoding="utf-9")
        with pytest.raises(ValueError, match=r"not UTF-16.*cut off"):
            load_pairs(put("image,text\n1,Größe\n".encode("utf-16")[:-1]))
        with pytest.raises(ValueError, match="line 3: a NUL byte"):
            load_pairs(put(b"image,text\n1,x\n2,\0\0\0"))

    @pytest.mark.parametrize(
        ("data", "said"),
        [(b"PK\x03\x04" + bytes(40), "a zip file, as an Excel"), (b"\xd0\xcf\x11\xe0" + bytes(40), "an old Excel"),
         (b"\n<!DOCTYPE html><html>", "a web page"),
         (b"version https://git-lfs.github.com/spec", "a pointer of Git LFS"),
         (b"PAR1", "a Parquet file"), (b"\x1f\x8b\x08", "compressed with gzip")],
    )  # fmt: skip
    def test_what_is_no_text_is_said(self, put, data, said):
        with pytest.raises(ValueError, match=f"no text table but {said}"):
            load_pairs(put(data))

    def test_both_scripts_share_the_options(self):
        from adaptor_hf.tasks.arguments import parse_arguments, table_options

        words = ["--task", "classification", "--table", "t.csv", "--label_column", "a", "--output_dir", "o",
                 "--model", "m", "--delimiter", "tab", "--encoding", "utf-16"]  # fmt: skip
        told = table_options(parse_arguments(words))
        assert (told["sep"], told["encoding"]) == ("tab", "utf-16")
        from adaptor_hf.training.script_arguments import DataArguments

        assert {"delimiter", "encoding"} <= set(DataArguments.__dataclass_fields__)


class TestBlankRows:
    DATA = "image,text\n1.png,a\n,\n  ,\t\n2.png,b\n" + ",\n" * 300

    def test_they_are_dropped_and_counted_and_rows_keep_their_numbers(self, put, caplog):
        caplog.set_level(logging.INFO)
        pairs = load_pairs(put(self.DATA), image_mode="L")
        assert pairs["source_row"][:] == [0, 3]
        assert "302 rows are blank and left out" in caplog.text
        frame = read_table(put(self.DATA).parent, "t.csv", columns=("image", "text"))
        assert list(frame.index) == [1, 4]
        table = read_report_table(put(self.DATA), "image")
        assert table.texts == {"1.png": "a", "2.png": "b"}
        assert (table.counts["rows"], table.counts["blank_rows"]) == (2, 302)

    def test_the_report_of_a_check_has_them(self, put, capsys):
        main(["check", "--table", str(put(self.DATA))])
        assert "rows: 2 (and 302 blank ones, left out)" in capsys.readouterr().out

    def test_labels_stay_with_their_rows(self, put):
        from adaptor_hf.tasks.data import load_table

        path = put("image,label\n1.png,a\n,\n2.png,b\n3.png,a\n")
        table = load_table(path, label_columns=("label",), image_mode="L")
        assert table.features["labels"].int2str(table["labels"][:]) == ["a", "b", "a"]

    def test_a_table_of_nothing_else_has_no_rows(self, put):
        with pytest.raises(ValueError, match="no rows"):
            load_pairs(put("image,text\n,\n,\n"))


def workbook(path, *rows, formats=()):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cell, form in formats:
        book.active[cell].number_format = form
    book.save(path)
    return path


class TestWorkbooks:
    def test_values_are_text_as_the_export_has_them(self, tmp_path):
        rows = [
            ["image", "text", "patient_id", "study_id", "day", "age", "on"],
            ["1.png", 'Größe; "x", y\nzwei', "007", 12, datetime.datetime(2020, 1, 31), 0.1 + 0.2, True],
            [None] * 7,
            ["2.png", "b", "08", 13, datetime.datetime(2020, 1, 31, 8, 30), 41.0, False],
        ]
        path = workbook(tmp_path / "t.xlsx", [], *rows, formats=[("D3", "00000")])
        pairs = load_pairs(path, image_mode="L")
        assert pairs["text"][:] == [rows[1][1], "b"]
        assert pairs["patient_id"][:] == ["007", "08"]
        assert pairs["study_id"][:] == ["00012", "13"]
        assert pairs["source_row"][:] == [0, 2]
        from adaptor_hf.data.table_files import read_source

        table = read_source(path, "image").table
        assert table["day"].to_pylist() == ["2020-01-31", "", "2020-01-31 08:30:00"]
        assert table["age"].to_pylist() == ["0.3", "", "41"]
        assert table["on"].to_pylist() == ["TRUE", "", "FALSE"]
        assert read_report_table(path, "patient_id").texts["08"] == "b"

    def test_ids_that_excel_has_rounded_stop_the_load(self, tmp_path):
        rows = [["image", "text", "patient_id"], ["1.png", "a", 1234567890123456789], ["2.png", "b", 7]]
        with pytest.raises(ValueError, match="scientific notation"):
            load_pairs(workbook(tmp_path / "t.xlsx", *rows))

    def test_faults_are_named(self, tmp_path, monkeypatch):
        header = ["image", "text"]
        with pytest.raises(ValueError, match=r"rows 3 \(as Excel"):
            load_pairs(workbook(tmp_path / "e.xlsx", header, ["1.png", "a"], ["2.png", "#NAME?"]))
        with pytest.raises(ValueError, match=r"row 2 .*a formula whose value was never computed"):
            load_pairs(workbook(tmp_path / "f.xlsx", header, ["1.png", '=CONCATENATE("a","b")']))
        with pytest.raises(ValueError, match="no visible sheet"):
            load_pairs(workbook(tmp_path / "n.xlsx"))
        book = openpyxl.load_workbook(workbook(tmp_path / "t.xlsx", header, ["1.png", "a"]))
        book.create_sheet("more").append(["x"])
        book.save(tmp_path / "two.xlsx")
        with pytest.raises(ValueError, match="2 sheets of the workbook have data"):
            load_pairs(tmp_path / "two.xlsx")
        book["more"].sheet_state = "hidden"
        book.save(tmp_path / "two.xlsx")
        assert load_pairs(tmp_path / "two.xlsx", image_mode="L")["text"][:] == ["a"]
        (tmp_path / "cut.xlsx").write_bytes((tmp_path / "two.xlsx").read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"not an Excel workbook that can be read.*CSV UTF-8"):
            load_pairs(tmp_path / "cut.xlsx")
        monkeypatch.setitem(sys.modules, "openpyxl", None)
        with pytest.raises(ValueError, match=r"adaptor-hf\[excel\].*CSV UTF-8"):
            load_pairs(tmp_path / "two.xlsx")

    @pytest.mark.parametrize("ending", [".xls", ".ods", ".sav", ".rds", ".dta", ".pkl", ".docx", ".pdf"])
    def test_other_formats_are_refused_by_name(self, put, ending):
        path = put(b"x", "t" + ending)
        for read in (load_pairs, lambda path: read_report_table(path, "a")):
            with pytest.raises(ValueError, match=r"t\.[a-z]+: (an?|a pickle) .*\.(\s|$)"):
                read(path)


class TestImagePaths:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "images").mkdir()
        for n in (1, 2):
            Image.new("L", (8, 6), n).save(tmp_path / "images" / f"{n}.png")
        return tmp_path

    def table(self, folder, *paths):
        frame = pd.DataFrame({"image": paths, "text": "x"})
        frame.to_csv(folder / "t.csv", index=False)
        return folder / "t.csv"

    @pytest.mark.parametrize("path", ["C:\\data\\1.png", "d:/data/1.png", "\\\\server\\share\\1.png", "C:1.png"])
    def test_drives_and_shares_are_said(self, folder, path):
        with pytest.raises(ValueError, match=r"absolute Windows paths.* in data row 1 .*--image_root"):
            load_pairs(self.table(folder, "images/1.png", path))

    def test_relative_backslashes_name_the_file_with_slashes(self, folder):
        pairs = load_pairs(self.table(folder, "images\\1.png", ".\\images\\2.png", "images\\gone.png"))
        assert [pairs[n]["image"].size for n in (0, 1)] == [(8, 6), (8, 6)]
        assert pairs["image_id"][:] == ["images/1.png", "images/2.png", "images/gone.png"]

    def test_a_name_with_a_backslash_is_itself(self, folder):
        Image.new("L", (4, 4)).save(folder / "a\\b.png")
        assert load_pairs(self.table(folder, "a\\b.png"))[0]["image"].size == (4, 4)
        (folder / "a").mkdir()
        Image.new("L", (5, 5)).save(folder / "a" / "b.png")
        with pytest.raises(ValueError, match=r"name two files each.* in data row 0"):
            load_pairs(self.table(folder, "a\\b.png"))

    def test_backslashes_that_lead_nowhere_are_said(self, folder):
        with pytest.raises(ValueError, match=r"backslashes, as on Windows, in data rows 0, 1.*image_root"):
            load_pairs(self.table(folder, "elsewhere\\1.png", "elsewhere\\2.png", "images/1.png"))

    @pytest.mark.parametrize(
        ("name", "said"),
        [("a.nii", "NIfTI"), ("a.NII.GZ", "NIfTI"), ("a.nrrd", "NRRD"), ("a.mha", "MetaImage"), ("a.HEIC", "HEIC"),
         ("a.svs", "whole-slide"), ("a.pdf", "PDF"), ("a.mp4", "video")],
    )  # fmt: skip
    def test_formats_that_are_not_read_are_named_with_a_way_out(self, folder, name, said):
        with pytest.raises(ValueError, match=rf"not read, in data row 1 .*{said}.*PNG"):
            load_pairs(self.table(folder, "images/1.png", name))

    @pytest.mark.parametrize(
        ("head", "said"),
        [(bytes(344) + b"n+1\0", "NIfTI"), (b"NRRD0004\n" + bytes(400), "NRRD"), (b"%PDF-1.7" + bytes(400), "PDF"),
         (bytes(4) + b"ftypheic" + bytes(400), "HEIC"), (b"ObjectType = Image\n" + bytes(400), "MetaImage")],
    )  # fmt: skip
    def test_so_are_files_under_another_name(self, put, head, said):
        with pytest.raises(ValueError, match=f"this is .*{said}"):
            read_image(put(head, "photo.jpg"))

    @pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif", "webp"])
    def test_formats_that_are_read_are_not_refused(self, folder, ending):
        Image.new("L", (8, 6), 7).save(folder / f"x.{ending}")
        assert foreign_format(f"x.{ending}", (folder / f"x.{ending}").read_bytes()) is None
        assert load_pairs(self.table(folder, f"x.{ending}"))[0]["image"].size == (8, 6)


def test_a_frame_is_said_with_a_way_out():
    with pytest.raises(TypeError, match=r"Dataset\.from_pandas"):
        load_pairs(pd.DataFrame({"image": ["a"], "text": ["b"]}))
