"""CSV files that people open in a spreadsheet run nothing, and are read back as they were."""

import ast
import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adaptor_hf
from adaptor_hf.data.table_files import read_source
from adaptor_hf.embeddings.faults import excluded_csv, read_excluded
from adaptor_hf.files import csv_cell, plain_cell, write_csv

PACKAGE = Path(adaptor_hf.__file__).parent
SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
TEXTS = st.text(st.sampled_from("='+-@\t\r\n\"',;.0123eE\uff1d ab"), max_size=8)


@given(TEXTS)
def test_no_text_is_a_formula_and_each_comes_back(text):
    written = csv_cell(text)
    assert plain_cell(written) == text
    if written[:1] in SIGNS and len(written) > 1:
        float(written.split()[0].rstrip("%*\u2020"))  # a number: else this raises


@pytest.mark.parametrize(
    "value",
    [
        -1,
        2.5,
        -0.5,
        float("-inf"),
        None,
        True,
        "-1",
        "+1.5",
        "-1e-3",
        "-",
        "+",
        "=",
        "@",
        "-0.03 (-0.05, 0.01)",
        "-.1 \u00b1 .2",
        "+.2\u2020",
    ],
)
def test_numbers_and_single_signs_stay(value):
    assert csv_cell(value) is value


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_is_marked(sign):
    assert csv_cell(f"{sign}A1") == f"'{sign}A1"


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_table_is_read_back_as_it_was(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    write_csv(path, ["=id", "text"], ([text, "kept"] for text in texts))
    table = read_source(path, "image").table
    assert table.column_names == ["'=id", "text"]
    # A carriage return is a line end to those who read tables.
    assert [cell.replace("\r\n", "\n") for cell in table["'=id"].to_pylist()] == [
        text.replace("\r\n", "\n") for text in texts
    ]


def test_excluded_rows_are_read_back_as_they_were(tmp_path):
    rows = [
        {"split": "train", "source_row": row, "image_id": f"{sign}1+1|cmd", "file": f"{sign}a.png", "reason": "-"}
        for row, sign in enumerate((*SIGNS, "'=", "'"))
    ]
    (tmp_path / "excluded.csv").write_bytes(excluded_csv(rows).encode())
    assert read_excluded(tmp_path / "excluded.csv") == rows
    with open(tmp_path / "excluded.csv", encoding="utf-8", newline="") as file:
        assert all(row["file"][0] not in SIGNS for row in csv.DictReader(file))


def test_a_name_that_is_no_unicode_is_written(tmp_path):
    write_csv(tmp_path / "t.csv", ["file"], [["a\udcff.png"]])
    assert (tmp_path / "t.csv").read_bytes() == b"file\na\\udcff.png\n"


def test_every_csv_is_written_by_the_one_function():
    allowed = {
        "files.py": "the one",
        "phantom/layout_pacs.py": "a table as a foreign system exports it",
        "phantom/layout_mimic_cxr.py": "a table as MIMIC-CXR has it",
    }
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.endswith((".to_csv", "csv.writer", "csv.DictWriter", "write_csv")) and name != "write_csv":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == set(allowed)
