"""Sections of reports and the sentence recipes."""

import pytest
from fixtures.mimic_cxr import REPORT
from hypothesis import given
from hypothesis import strategies as st

from adaptor_hf.data.report_sentences import SENTENCE_RULES, sentences_of, split_sentences
from adaptor_hf.data.reports import HEADINGS, parse_sections, section_texts


def names(report: str) -> list[str]:
    return [name for name, _ in parse_sections(report)]


class TestSections:
    def test_the_report_of_the_format_description(self):
        expected = ["preamble", "examination", "indication", "comparison", "findings", "impression"]
        assert names(REPORT) == expected
        assert section_texts(REPORT)["findings"] == (
            "The lungs are clear.  There is no pleural effusion or pneumothorax."
        )

    @pytest.mark.parametrize(
        ("heading", "section"),
        [
            ("CONCLUSION", "impression"),
            ("FINDINGS AND IMPRESSION", "impression"),
            ("IMPRESSON", "impression"),
            ("NDICATION", "impression"),
            ("REASON FOR EXAM", "indication"),
            ("CHEST, TWO VIEWS", "findings"),
            ("PORTABLE SUPINE", "findings"),
            ("RIGHT RIBS", "findings"),
            ("PRIOR COMPARISON STUDY", "comparison"),
            ("FINAL IMPRESSION AND FINDINGS", "impression"),
            ("PFI", "history"),
            ("SOMETHING ELSE", "something else"),
        ],
    )
    def test_a_heading_opens_its_section(self, heading, section):
        assert names(f"FINAL REPORT\n {heading}:  Text.\n") == ["preamble", section]

    def test_the_last_section_of_a_name_counts(self):
        assert section_texts("R\n FINDINGS: one\n \n FINDINGS: two\n")["findings"] == "two"

    def test_an_empty_findings_section_is_left_out(self):
        report = "R\n CHEST, PA AND LATERAL: \n \n INDICATION:  Cough.\n \n FINDINGS:  Clear.\n"
        assert names(report) == ["preamble", "indication", "findings"]

    def test_without_findings_the_last_paragraph_is_split_off(self):
        report = "R\n EXAMINATION:  CHEST\n \n Heart is normal.\n \n No effusion.\n"
        assert names(report) == ["preamble", "examination", "last_paragraph"]
        assert section_texts(report)["last_paragraph"] == "Heart is normal.\n \n No effusion."

    def test_a_heading_within_the_line_that_opens_a_section_is_text(self):
        # As upstream has it: the line break after the colon belongs to the heading, so the next line is looked over.
        assert parse_sections("R\n FINDINGS:\n IMPRESSION: Clear.\n")[1:] == [("findings", " IMPRESSION: Clear.\n")]

    def test_a_report_without_heading_is_one_section(self):
        assert names("Lungs clear.") == ["full report"]

    def test_line_ends_of_windows_change_nothing(self):
        assert names(REPORT.replace("\n", "\r\n")) == names(REPORT)

    def test_another_language_needs_its_headings(self):
        with pytest.raises(ValueError, match=r"No headings for the language 'xx'. Known: de, en, es, fr"):
            parse_sections(REPORT, "xx")

    @given(st.lists(st.sampled_from([*"ab.: \n", "\n FINDINGS: ", "\n IMPRESSION:\n", "\n \n"])).map("".join))
    def test_no_text_of_a_findings_section_is_empty_and_none_is_made_up(self, report):
        for name, text in parse_sections(report):
            assert text in report
            assert name not in ("findings", "impression") or text.strip()

    def test_every_known_heading_is_found_by_the_pattern(self):
        for heading in (word for words in HEADINGS["en"].names.values() for word in words):
            assert HEADINGS["en"].pattern.fullmatch(f"\n {heading.upper()}: ")


class TestRecipes:
    def test_mgca_gives_its_known_sentences(self):
        assert sentences_of(section_texts(REPORT), "mgca") == [
            "no acute cardiopulmonary process",
            "5 cm nodule is unchanged since ___",
            "the lungs are clear",
            "there is no pleural effusion or pneumothorax",
        ]

    def test_the_default_keeps_decimals_case_and_marks(self):
        assert sentences_of(section_texts(REPORT)) == [
            "No acute cardiopulmonary process.",
            "1.5 cm nodule is unchanged since ___.",
            "The lungs are clear.",
            "There is no pleural effusion or pneumothorax.",
        ]

    def test_lovt_puts_findings_first(self):
        assert sentences_of(section_texts(REPORT), "lovt")[0] == "The lungs are clear."

    def test_medclip_keeps_sentences_of_more_than_four_tokens(self):
        assert sentences_of(section_texts(REPORT), "medclip") == [
            "1 . 5 cm nodule is unchanged since ___",
            "there is no pleural effusion or pneumothorax .",
        ]

    def test_mgca_drops_letters_outside_ascii_and_the_default_keeps_them(self):
        sections = {"findings": "Ödem größer als 2.5 cm, naïve."}
        assert sentences_of(sections, "mgca") == ["dem grer als", "5 cm nave"]
        assert sentences_of(sections) == ["Ödem größer als 2.5 cm, naïve."]

    @pytest.mark.parametrize("rule", sorted(SENTENCE_RULES))
    def test_nothing_comes_of_nothing(self, rule):
        assert sentences_of({}, rule) == []
        assert sentences_of({"findings": "", "impression": ""}, rule) == []

    def test_mgca_and_lovt_want_three_words_a_report(self):
        assert sentences_of({"impression": "Lungs clear."}, "mgca") == []
        assert sentences_of({"impression": "Clear"}, "lovt") == []
        assert sentences_of({"impression": "No pneumothorax."}) == ["No pneumothorax."]

    def test_an_unknown_recipe_is_refused(self):
        with pytest.raises(ValueError, match="Unknown sentence rule 'x'"):
            sentences_of({}, "x")


class TestSplitting:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("No effusion. No edema.", ["No effusion.", "No edema."]),
            ("1. No effusion.\n 2. Edema.", ["No effusion.", "Edema."]),
            ("Stable: 1. Effusion. 2. Edema.", ["Stable:", "Effusion.", "Edema."]),
            ("Nodule of 1.5 cm.\n Stable.", ["Nodule of 1.5 cm.", "Stable."]),
            ("Edema vs. pneumonia.", ["Edema vs. pneumonia."]),
            ("Told Dr. ___ at 3:15 p.m. on ___.", ["Told Dr. ___ at 3:15 p.m. on ___."]),
            ("___. ___\n \n___ Clear.", ["___ Clear."]),
            ("No\n effusion", ["No effusion"]),
            ("Kein Erguss. Größe 2,5 cm.", ["Kein Erguss.", "Größe 2,5 cm."]),
            ("Effusion? None.", ["Effusion?", "None."]),
        ],
    )
    def test_sentences(self, text, expected):
        assert split_sentences(text) == expected

    @given(st.text(alphabet="ab. 1\n_é", max_size=60))
    def test_every_letter_stays_in_order(self, text):
        def letters(value: str) -> str:
            return "".join(character for character in value if character.isalpha())

        assert letters("".join(split_sentences(text))) == letters(text)
