"""One id for all spellings of it, and the check of a column for ids in several spellings."""

import logging
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaptor_hf.data.ids import canonical_id, canonical_ids, check_ids, find_spellings, is_scientific, loose_id

few = settings(max_examples=300, deadline=None)
SPELLINGS = {
    "case": ("P12", "p12"),
    "leading zeros": ("0000012", "12"),
    "a final .0": ("12.0", "12"),
    "outer spaces": (" P12", "P12\u00a0"),
    "invisible characters": ("P\u200b12", "P12"),
    "Unicode form": ("M\u00fc12", "Mu\u030812"),
}


class TestCanonical:
    @few
    @given(st.text())
    @example("\u0345\u0301\u00df\u1e9e \ufeff\u3164")
    @example("\uff11\uff12\uff0e\uff10")
    def test_once_is_enough(self, value):
        assert canonical_id(canonical_id(value)) == canonical_id(value)
        assert loose_id(loose_id(value)) == loose_id(value)

    @few
    @given(st.text(st.characters(codec="ascii")))
    def test_case_spaces_form_and_invisible_characters_do_not_count(self, value):
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)
        hidden = "\u200d".join(value)
        for other in (value.upper(), f"\u3000{value}\t", wide, hidden, unicodedata.normalize("NFD", value)):
            assert canonical_id(other) == canonical_id(value)

    @few
    @given(st.integers(0, 10**18), st.integers(0, 5), st.integers(0, 3))
    def test_a_number_is_its_digits(self, number, zeros, decimals):
        written = "0" * zeros + str(number) + ("." + "0" * decimals if decimals else "")
        assert canonical_id(written) == str(number)

    @pytest.mark.parametrize(
        "patients",
        [
            ("P1", "P10", "P01"), ("A1", "B1"), ("1", "10", "100"), ("12.5", "12"), ("12", "-12"), ("1.2.0", "1.2"),
            ("12e4", "120000"), ("0x1", "1"), ("a b", "ab"), ("1-12", "11-2"), ("M\u00fc", "Mu"),
        ],
    )  # fmt: skip
    def test_what_may_be_two_patients_stays_apart(self, patients):
        assert len({*map(canonical_id, patients)}) == len(patients)

    def test_digits_of_other_scripts_are_digits(self):
        assert canonical_id("\u0660\u0661\u0662") == canonical_id("\u0967\u0968") == "12"
        assert (canonical_id("000"), canonical_id("0.0")) == ("0", "0")

    def test_columns_keep_their_gaps(self):
        assert canonical_ids(["A", None, "007"]) == ["a", None, "7"]


class TestCheck:
    @pytest.mark.parametrize("kind", SPELLINGS)
    def test_two_spellings_stop_with_their_kind_and_rows(self, kind):
        first, second = SPELLINGS[kind]
        with pytest.raises(ValueError, match=r"^patient_id: 1 ids are written in several ways") as caught:
            check_ids(["other", first, second, first], [10, 20, 30, 40])
        message = str(caught.value)
        assert f"(1 by {kind})" in message
        assert "data rows 20 and 30 (0-based" in message
        assert "--ids canonical" in message
        assert "--ids exact" in message
        assert first.strip() not in message.replace("data rows 20 and 30", "")

    @pytest.mark.parametrize("kind", SPELLINGS)
    def test_a_choice_keeps_them_apart_or_makes_them_one(self, kind):
        first, second = SPELLINGS[kind]
        values = ["other", first, None, second]
        assert check_ids(values, mode="exact") == values
        merged = check_ids(values, mode="canonical")
        assert merged[1] == merged[3]
        assert merged[1] in (first, second)
        assert (merged[0], merged[2]) == ("other", None)
        # The spelling that stays does not depend on the order of rows.
        assert check_ids(values[::-1], mode="canonical") == merged[::-1]

    def test_several_kinds_are_counted_by_id(self):
        report = find_spellings(["P1", "p1", "P2", "p2 ", "03", "3.0", "P9"])
        assert report.kinds == {"case": 2, "outer spaces": 1, "a final .0": 1, "leading zeros": 1}
        assert report.certain == [(0, 1), (2, 3), (4, 5)]

    @pytest.mark.parametrize(
        "values", [["p-7", "P7"], ["A 1", "A_1"], ["12-34-56", "123456"], ["1-12", "1_12", "11-2"]]
    )
    def test_punctuation_alone_is_a_warning_with_rows(self, values, caplog):
        assert check_ids(values) == values
        assert "1 ids differ from others by spaces or punctuation alone" in caplog.text
        assert "data rows 0 and 1 (0-based" in caplog.text
        assert values[0] not in caplog.text.replace("as p-7 and P7 do", "")

    @pytest.mark.parametrize(
        "values",
        [
            ["P1", "P10", "A1", "B1", None], ["1-12", "11-2", "1-1-2"], [str(i) for i in range(500)], ["P1", "P1"],
            ["12e4", "e4", "1e5"], [f"{i:05d}" for i in range(300)], ["--", "-", "P"],
        ],
    )  # fmt: skip
    def test_a_healthy_column_gives_no_word(self, values, caplog):
        caplog.set_level(logging.INFO)
        assert check_ids(values) == values
        assert caplog.text == ""

    @pytest.mark.parametrize("mode", [None, "exact", "canonical"])
    def test_scientific_notation_always_stops(self, mode):
        with pytest.raises(ValueError, match=r"2 cells are in scientific notation.*rows 1, 2 .*formatted as text"):
            check_ids(["7", "1.23457E+11", "1.23457E+11"], mode=mode)

    def test_what_a_spreadsheet_writes_and_what_may_be_an_id(self):
        assert all(map(is_scientific, ("1.2e+05", "1E+11", " 1,5E10", "2.E-3", "-1.5E+3")))
        assert not any(map(is_scientific, ("12e4", "1e5", "E+11", "1.5", "1E11", "A1.5E+3", "3e")))

    def test_other_modes_are_refused(self):
        with pytest.raises(ValueError, match="exact or canonical, got 'merge'"):
            check_ids(["1"], mode="merge")
