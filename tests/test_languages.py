"""Reports in German, Spanish and French: sections, sentences, prompts; phantoms that speak German and Spanish."""

import re

import pytest

from adaptor_hf.data.report_sentences import sentences_of, split_sentences
from adaptor_hf.data.reports import HEADINGS, parse_sections, section_texts
from adaptor_hf.phantom import FINDINGS, LANGUAGES, generate_phantoms
from adaptor_hf.phantom.findings import SIZES
from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.translated_reports import _words
from adaptor_hf.tasks.prompts import load_prompts

GERMAN = """Röntgen Thorax in 2 Ebenen vom 12.03.2024

Klinische Angaben: Z. n. Sturz. V. a. Fraktur der 5. Rippe links.
Befund:
Herz: normal groß. Kein Erguss, z. B. im Randwinkel. Rundherd von 1,5 cm im rechten Oberlappen.
Infiltrat Grad 2. Kein Pneumothorax.

BEURTEILUNG
1. V. a. Pneumonie rechts.
2. Keine Stauung.
"""
SPANISH = (
    "DATOS CLÍNICOS: tos y fiebre.\nHALLAZGOS: Silueta cardíaca normal, p. ej. sin derrame. Nódulo de 1,5 cm.\n"
    "IMPRESIÓN DIAGNÓSTICA: Sin hallazgos agudos."
)
FRENCH = (
    "Indication : toux fébrile.\nRésultats : pas d'épanchement pleural. Cœur de taille normale.\nConclusion : normal."
)


class TestSections:
    def test_german_report(self):
        sections = section_texts(GERMAN, "de")
        assert list(sections) == ["preamble", "history", "findings", "impression"]
        assert sections["impression"] == "1. V. a. Pneumonie rechts.\n2. Keine Stauung."

    def test_organ_names_with_a_colon_stay_in_the_findings(self):
        assert section_texts(GERMAN, "de")["findings"].startswith("Herz: normal groß.")

    def test_spanish_and_french_reports(self):
        assert section_texts(SPANISH, "es")["impression"] == "Sin hallazgos agudos."
        assert section_texts(SPANISH, "es")["history"] == "tos y fiebre."
        assert section_texts(FRENCH, "fr") == {
            "preamble": "",
            "indication": "toux fébrile.",
            "findings": "pas d'épanchement pleural. Cœur de taille normale.",
            "impression": "normal.",
        }

    def test_headings_on_one_line(self):
        sections = section_texts("Befund: Kein Erguss. Beurteilung: Unauffällig.", "de")
        assert (sections["findings"], sections["impression"]) == ("Kein Erguss.", "Unauffällig.")

    @pytest.mark.parametrize("text", ["Der Befund ist stabil.", "Im Vergleich: Befundbesserung.", "Technik bedingt."])
    def test_words_within_a_sentence_are_no_headings(self, text):
        assert [name for name, _ in parse_sections(text, "de")] == ["full report"]

    @pytest.mark.parametrize("language", ["de", "es", "fr"])
    def test_every_heading_of_a_table_opens_its_section_and_no_two_share_one(self, language):
        headings = HEADINGS[language]
        words = [heading for known in headings.names.values() for heading in known]
        assert len(words) == len(set(words))
        for name, known in headings.names.items():
            for heading in known:
                for written in (heading, heading.upper(), heading.capitalize()):
                    found = parse_sections(f"x.\n{written}: Text.", language)
                    assert found[-1] == (name, " Text."), written

    def test_the_same_sections_exist_in_all_languages(self):
        for language in ("de", "es", "fr"):
            assert set(HEADINGS[language].names) <= set(HEADINGS["en"].names)
            assert {"impression", "findings", "history", "comparison"} <= set(HEADINGS[language].names)


class TestSentences:
    def test_german_abbreviations_ordinals_and_decimals_end_no_sentence(self):
        assert sentences_of(section_texts(GERMAN, "de"), language="de") == [
            "V. a. Pneumonie rechts.",
            "Keine Stauung.",
            "Herz: normal groß.",
            "Kein Erguss, z. B. im Randwinkel.",
            "Rundherd von 1,5 cm im rechten Oberlappen.",
            "Infiltrat Grad 2.",
            "Kein Pneumothorax.",
        ]
        assert split_sentences("Fraktur der 5. Rippe links. Kein Erguss.", "de") == [
            "Fraktur der 5. Rippe links.",
            "Kein Erguss.",
        ]

    def test_spanish_and_french(self):
        assert split_sentences("Opacidad, p. ej. basal. Sin derrame.", "es") == [
            "Opacidad, p. ej. basal.",
            "Sin derrame.",
        ]
        assert split_sentences("Nodule de 1,5 cm env. Cœur normal.", "fr")[0].startswith("Nodule de 1,5 cm")

    @pytest.mark.parametrize(("text", "language"), [(GERMAN, "de"), (SPANISH, "es"), (FRENCH, "fr")])
    def test_no_letter_and_no_negation_is_lost(self, text, language):
        def letters(value):
            return re.sub(r"[\W\d_]", "", value)

        assert letters("".join(split_sentences(text, language))) == letters(text)

    def test_english_is_the_default_and_unchanged_by_the_others(self):
        text = "Grade 3. No effusion. Compared to 5. Lungs clear."
        assert split_sentences(text) == split_sentences(text, "en") == [
            "Grade 3.", "No effusion.", "Compared to 5.", "Lungs clear.",
        ]  # fmt: skip

    def test_reference_rules_are_english_only_and_unknown_languages_are_named(self):
        with pytest.raises(ValueError, match="'mgca' is for English"):
            sentences_of({"findings": "Kein Erguss."}, "mgca", "de")
        with pytest.raises(ValueError, match="No sentence rules for the language 'xx'"):
            split_sentences("x.", "xx")


@pytest.fixture(scope="module", params=["de", "es"])
def spoken(request):
    return request.param, _words(request.param), list(plan(400, 64, 0, request.param))


class TestPhantomReports:
    def test_languages(self):
        assert LANGUAGES == ("en", "de", "es")
        with pytest.raises(ValueError, match="No reports in the language 'xx'"):
            generate_phantoms(1, language="xx")

    def test_pictures_and_facts_do_not_depend_on_the_language(self, spoken):
        language, _, plans = spoken
        for here, there in zip(plans, plan(400, 64, 0), strict=True):
            assert {**here.row(), "text": ""} == {**there.row(), "text": ""}
        first, second = (next(generate_phantoms(1, image_size=64, language=name)) for name in ("en", language))
        assert first["image"].tobytes() == second["image"].tobytes()
        assert first["text"] != second["text"]

    def test_reports_are_whole_sentences_without_gaps(self, spoken):
        for planned in spoken[2]:
            text = planned.report.text
            assert not re.search(r"[{}]|\s[.,]|None|\s\s", text)
            assert text.endswith(".")
            assert text[0].isupper() or text[0].isdigit()
            assert not re.search(r"\d\.\d", text), "a decimal point where the language has a comma"

    def test_what_is_drawn_is_said_and_what_is_denied_is_not_drawn(self, spoken):
        _, words, plans = spoken
        for planned in plans:
            present = {finding.name for finding in planned.findings}
            for name in FINDINGS:
                mention = planned.report.mentions.get(name)
                assert (mention in (1.0, -1.0)) == (name in present), (name, planned.report.text)
                denials = words["findings"][name]["absent"]
                if name in present:
                    assert not any(denial in planned.report.text for denial in denials), planned.report.text
                elif mention is None:
                    assert not any(denial in planned.report.text for denial in denials)

    def test_side_and_size_are_those_that_are_drawn(self, spoken):
        _, words, plans = spoken
        sides = {side: re.compile("|".join(words["side"][side])) for side in ("right", "left")}
        seen = 0
        for planned in plans:
            only = planned.findings[0] if len(planned.findings) == 1 else None
            if only is None or only.name not in ("effusion", "pneumothorax"):
                continue
            seen += 1
            other = "left" if only.side == "right" else "right"
            text = planned.report.text
            assert sides[only.side].search(text), text
            assert not sides[other].search(text), text
            told = [size for size, names in zip(SIZES, words["findings"][only.name]["sizes"], strict=True)
                    if any(re.search(rf"\b{name}", text, re.IGNORECASE) for name in names)]  # fmt: skip
            assert told == [only.size], text
        assert seen > 10

    def test_all_findings_devices_and_places_have_words(self):
        english = {"findings", "devices", "device_nouns", "zone", "side", "change", "decimal", "headings"}
        for language in ("de", "es"):
            words = _words(language)
            assert english <= set(words)
            assert set(words["findings"]) == set(FINDINGS)
            assert set(words["zone"]) == {"upper", "mid", "lower"}
            assert all(set(places) == {"right", "left", "both"} for places in (*words["zone"].values(), words["side"]))

    def test_sections_of_the_reports_are_found(self, spoken):
        language, _, plans = spoken
        both = [section_texts(planned.report.text, language) for planned in plans]
        share = sum({"findings", "impression"} <= set(sections) for sections in both) / len(both)
        assert 0.5 < share < 0.7


class TestPrompts:
    @pytest.mark.parametrize("language", ["de", "es", "fr"])
    @pytest.mark.parametrize("name", ["chexpert", "phantom"])
    def test_each_language_has_the_classes_of_english_and_texts_of_its_own(self, name, language):
        english, other = load_prompts(name), load_prompts(f"{name}_{language}")
        assert list(other.positive) == list(english.positive)
        assert list(other.negative) == list(english.negative)
        for label in english.positive:
            there, not_there = other.positive[label], other.negative[label]
            assert len(set(there)) == len(there) >= 3
            assert len(set(not_there)) == len(not_there) >= 2
            assert not set(there) & set(not_there)
            assert not set(there) & set(english.positive[label]) - {"Pneumothorax.", "Atelectasis."}

    @pytest.mark.parametrize(("language", "denials"), [
        ("de", r"\b(kein|keine|nicht|unauffällig|schlank|frei|normal|intakt|regelrecht|im normbereich)"),
        ("es", r"\b(sin|no|normal|libres|íntegras)\b"),
        ("fr", r"\b(pas|absence|normal|normale|non|libres|sans)\b"),
    ])  # fmt: skip
    def test_denials_deny(self, language, denials):
        prompts = load_prompts(f"chexpert_{language}")
        for label, texts in prompts.negative.items():
            if label != "No Finding":
                assert all(re.search(denials, text, re.IGNORECASE) for text in texts), label
                assert not any(re.search(r"\b(kein|sin|no se|pas d)", text, re.IGNORECASE)
                               for text in prompts.positive[label]), label  # fmt: skip
