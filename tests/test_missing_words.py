"""One list of missing words: the same cells have no value for ids, reports, splits, labels, ages, PACS and caches."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from adaptor_hf.data.captions import clean_whitespace
from adaptor_hf.data.files import read_table, to_numbers
from adaptor_hf.data.missing import MISSING_WORDS, is_missing, missing_words, without_missing
from adaptor_hf.data.pacs.reports_table import read_report_table
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings.table import text_fault

WRITTEN = ("#N/A", "n/a", "none", "NULL", "NaN", "-nan", "NaT", "<NA>", " NA ", "\\N", "#NV", "#DIV/0!", "(null)", ".")
VALUES = ("-", "0", "no", "unknown", "n/a.", "none seen", "NA 140 mmol/l", "nano", "N.A.")


@pytest.mark.parametrize("cell", [*WRITTEN, "", " \t", "\u00a0", None, math.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_what_tools_write_for_no_value_is_missing(cell):
    assert is_missing(cell)


@pytest.mark.parametrize("cell", [*VALUES, 0, False, 0.0])
def test_what_may_mean_something_is_a_value(cell):
    assert not is_missing(cell)


def test_columns_and_cells_agree_and_other_cells_stay_exact():
    cells = [*WRITTEN, *VALUES, "a\nn/a", " two  spaces "]
    found = without_missing(pa.chunked_array([cells]), strip=False).to_pylist()
    assert found == [None if is_missing(cell) else cell for cell in cells]
    for word in MISSING_WORDS:
        for form in (word, word.upper(), f" {word.title()}\n"):
            assert without_missing(pa.chunked_array([[form]]), strip=True).to_pylist() == [None]


def test_what_pandas_takes_for_missing_is_in_the_list():
    from pandas._libs.parsers import STR_NA_VALUES

    assert {word.lower() for word in STR_NA_VALUES} <= set(MISSING_WORDS)


def test_more_words_are_added_and_a_single_string_is_refused():
    assert is_missing(" Unknown", ["unknown"])
    assert not is_missing("Unknown")
    with pytest.raises(TypeError, match=r"Pass \['unknown'\]"):
        missing_words("unknown")


def test_ids_reports_and_views_of_a_table(tmp_path):
    table = tmp_path / "t.csv"
    lines = [f'{row}.png,"{word}","{word}","{word}","{word}"' for row, word in enumerate((*WRITTEN, "unknown", "real"))]
    table.write_text("image,text,patient_id,study_id,view\n" + "\n".join(lines) + "\n")
    pairs = load_pairs(table)
    for name in ("text", "patient_id", "study_id", "view"):
        assert pairs[name][:] == [None] * len(WRITTEN) + ["unknown", "real"]
    assert load_pairs(table, missing_words=["Unknown"])["text"][:] == [None] * (len(WRITTEN) + 1) + ["real"]


def test_public_tables_reports_of_a_pacs_captions_and_caches(tmp_path):
    (tmp_path / "p.csv").write_text("id,age,text\n1,n/a,none\n2,63,clear lungs\n3,#N/A,NULL\n")
    frame = read_table(tmp_path, "p.csv", columns=("id", "age", "text"))
    assert frame["text"].tolist() == [None, "clear lungs", None]
    assert to_numbers(frame, "age").fillna(-1).tolist() == [-1, 63, -1]
    reports = read_report_table(tmp_path / "p.csv", "id")
    assert reports.texts == {"1": "", "2": "clear lungs", "3": ""}
    assert reports.counts["rows_without_text"] == 2
    (tmp_path / "k.csv").write_text("key,text\nN/A,one\nA1,two\n")
    assert read_report_table(tmp_path / "k.csv", "key").counts["rows_without_key"] == 1
    assert clean_whitespace(pd.Series(["a  dog", " NULL "])).tolist() == ["a dog", None]
    assert text_fault(" N/A") == "text is the word 'N/A'"
    assert text_fault("None seen.") is None
