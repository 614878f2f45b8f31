"""Sentences of a report's sections: our rule, and those of the reference codes by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

_WORDS = re.compile(r"\w+")
_WORDS_AND_MARKS = re.compile(r"\w+|[^\w\s]+")
_LIST_NUMBER = re.compile(r"[0-9]+\.")
_LIST_NUMBER_MEDCLIP = re.compile(r"[0-9]+\.+[^0-9]")

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# "1. " and "2) " at the start of a line, or within one before a capital: the number of a list.
_ITEM = re.compile(r"(?:^|\n)\s*\d{1,2}[.)]\s+|(?<=[.:;])\s+\d{1,2}[.)]\s+(?=[A-ZÀ-ÖØ-Þ_])")
# A full stop ends a sentence before white space; so "1.5" stays, and the abbreviations below.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
_ABBREVIATIONS = ("Dr.", "Drs.", "Mr.", "Mrs.", "Ms.", "Prof.", "St.", "vs.", "cf.", "approx.", "resp.", "incl.",
                  "e.g.", "i.e.", "a.m.", "p.m.", "Nr.")  # fmt: skip
# Abbreviations of several parts, whose full stops end no sentence: the end of one part, the beginning of the next.
_FIRST_PARTS = re.compile(r"(?:^|[\s(])(?:[zZ]|[vV]|[dD]|[uU]|[pP]|n|i)\.$")
_LAST_PARTS = re.compile(r"(?:B|n|a|h|ej|Bsp|ex|v)\.")
_WHOLE = re.compile(r"(?:^|[\s(])(?:[zZ]\. ?B|[zZ]\. ?n|[vV]\. ?a|[dD]\. ?h|[uU]\. ?a|[pP]\. ?ej|[pP]\. ?ex)\.$")
# By language: abbreviations of one part, and whether "5." may be an ordinal ("der 5. Rippe").
_OF_LANGUAGE = {
    "en": ((), False),
    "de": (("bzw.", "ca.", "ggf.", "evtl.", "inkl.", "max.", "re.", "li.", "bds.", "Pat.", "Z.n.", "z.n.", "V.a.",
            "z.B.", "d.h.", "u.a.", "St.p.", "sog.", "vgl.", "Abb."), True),
    "es": (("Sr.", "Sra.", "Dra.", "aprox.", "p.ej.", "izq.", "dcho.", "dcha.", "pte."), False),
    "fr": (("M.", "Mme.", "env.", "p.ex.", "ant.", "post.", "c.-à-d.", "dt.", "gche."), False),
}  # fmt: skip
_ORDINAL = re.compile(r"(?:^|\s)\d{1,2}\.$")
# Words before which a number and a full stop end a sentence all the same: "Grad 2. Kein Erguss."
_NO_ORDINAL_BEFORE = re.compile(r"(?:Grad|Grades|Stadium|Typ|Stufe|Klasse|auf|Nr\.|Bild)\s\d{1,2}\.$")
_NUMBERED = re.compile(r"\d[.)]\s")
_LETTER = re.compile(r"[^\W\d_]")


def default_sentences(sections: Mapping[str, str], language: str = "en") -> list[str]:
    """
    Our rule: impression, then findings; where there is neither, the last paragraph.

    Sentences keep their case, marks, decimals, negations and letters of any alphabet; list numbers go, and so do
    fragments without any letter, such as a lone "___".
    """
    texts = [sections[name] for name in ("impression", "findings") if sections.get(name)]
    if not texts:
        texts = [sections.get("last_paragraph") or ""]
    return [sentence for text in texts for sentence in split_sentences(text, language)]


def split_sentences(text: str, language: str = "en") -> list[str]:
    """
    Sentences of a text, white space collapsed. Blank lines, list numbers and closing marks separate them; abbreviations
    of the language, and ordinals in German, do not.

    Raises:
        ValueError: No rules for this language.
    """
    return [sentence for sentence, _, _ in _sentences(text, language)]


def sentence_spans(text: str, language: str = "en") -> list[tuple[int, int]]:
    """
    Where the sentences of `split_sentences` are in a text: their first character, and their last one + 1. What stands
    between two of them, such as a list number or a closing mark, belongs to none.
    """
    return [(start, stop) for _, start, stop in _sentences(text, language)]


def _sentences(text: str, language: str) -> Iterator[tuple[str, int, int]]:
    if language not in _OF_LANGUAGE:
        raise ValueError(f"No sentence rules for the language {language!r}. Known: {', '.join(_OF_LANGUAGE)}.")
    for paragraph, place in _pieces(_BLANK_LINE, text, 0):
        items = _pieces(_ITEM, paragraph, place) if _NUMBERED.search(paragraph) else [(paragraph, place)]
        for item, item_place in items:
            pending, begin = "", item_place
            pieces = _pieces(_END, item, item_place)
            for (piece, start), (following, _) in zip(pieces, [*pieces[1:], ("", 0)], strict=True):
                begin = begin if pending else start
                pending = f"{pending} {piece}" if pending else piece
                if not _goes_on(pending, following, language):
                    yield from _cleaned(pending, begin, start + len(piece), text)
                    pending = ""
            yield from _cleaned(pending, begin, item_place + len(item), text)


def _pieces(pattern: re.Pattern, text: str, place: int) -> list[tuple[str, int]]:
    """What `pattern.split` gives, each with where it begins; `text` itself begins at `place`."""
    found, start = [], 0
    for match in pattern.finditer(text):
        found.append((text[start : match.start()], place + start))
        start = match.end()
    return [*found, (text[start:], place + start)]


def _cleaned(sentence: str, start: int, stop: int, text: str) -> Iterator[tuple[str, int, int]]:
    if _LETTER.search(sentence):
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        yield " ".join(sentence.split()), start, start + len(text[start:stop].rstrip())


def mgca_sentences(sections: Mapping[str, str]) -> list[str]:
    """
    MGCA: impression, then findings; split at list numbers and at every full stop; lower case; words only.

    So "1.5 cm" becomes "5 cm", "___" stays, marks and letters outside ASCII go. A sentence has more than one word; a
    report with fewer than three words has none.
    """
    text = f"{sections.get('impression') or ' '} {sections.get('findings') or ' '}".replace("\n", " ")
    pieces = [piece for part in _LIST_NUMBER.split(text) for piece in part.split(".")]
    sentences = [tokens for tokens in map(_word_tokens, pieces) if tokens]
    return [" ".join(tokens) for tokens in sentences] if sum(map(len, sentences)) >= 3 else []


def medclip_sentences(sections: Mapping[str, str]) -> list[str]:
    """
    MedCLIP: split at list numbers (and the character after them) and at ". "; lower case; words and marks as tokens;
    sentences of more than four. Impression, then findings: its tables of reports are not published.
    """
    text = f"{sections.get('impression') or ''} {sections.get('findings') or ''}".replace("\n", " ")
    pieces = [piece for part in _LIST_NUMBER_MEDCLIP.split(text) for piece in part.split(". ")]
    tokens = (_ascii(_WORDS_AND_MARKS.findall(piece.replace("\ufffd\ufffd", " ").lower())) for piece in pieces)
    return [" ".join(sentence) for sentence in tokens if len(sentence) > 4]


def lovt_sentences(sections: Mapping[str, str]) -> list[str]:
    """
    LoVT: findings, then impression, white space collapsed; a report with fewer than three words has none.

    LoVT splits sentences with a network (stanza); here `split_sentences` does, so single boundaries may differ.
    """
    sentences = [
        sentence for name in ("findings", "impression") for sentence in split_sentences(sections.get(name) or "")
    ]
    return sentences if sum(len(_WORDS_AND_MARKS.findall(sentence)) for sentence in sentences) >= 3 else []


SENTENCE_RULES: dict[str, Callable[[Mapping[str, str]], list[str]]] = {
    "default": default_sentences,
    "mgca": mgca_sentences,
    "lovt": lovt_sentences,
    "medclip": medclip_sentences,
}
"""Rules by name: from section texts (see `adaptor_hf.data.reports.section_texts`) to sentences."""


def sentences_of(sections: Mapping[str, str], rule: str = "default", language: str = "en") -> list[str]:
    """
    Sentences of a report by a rule of `SENTENCE_RULES`; the report's text is these joined by blanks.

    Raises:
        ValueError: No such rule, or one of the reference codes for another language than theirs, English.
    """
    if rule not in SENTENCE_RULES:
        raise ValueError(f"Unknown sentence rule {rule!r}. Choose one of: {', '.join(SENTENCE_RULES)}.")
    if rule == "default":
        return default_sentences(sections, language)
    if language != "en":
        raise ValueError(f"The sentence rule {rule!r} is for English reports. Use 'default' for {language!r}.")
    return SENTENCE_RULES[rule](sections)


def _goes_on(text: str, following: str, language: str) -> bool:
    """Whether the full stop at the end of `text` belongs to an abbreviation or an ordinal."""
    own, ordinals = _OF_LANGUAGE[language]
    # These tests are quick and rule out nearly all.
    if text.endswith(_ABBREVIATIONS + own) and text.split()[-1].lstrip("(") in _ABBREVIATIONS + own:
        return True
    if language == "en" or not following:
        return False
    if _FIRST_PARTS.search(text) and _LAST_PARTS.match(following):
        return True
    if _WHOLE.search(text):
        return True
    return ordinals and bool(_ORDINAL.search(text)) and not _NO_ORDINAL_BEFORE.search(text)


def _word_tokens(piece: str) -> list[str]:
    tokens = _WORDS.findall(piece.replace("\ufffd\ufffd", " ").lower())
    return _ascii(tokens) if len(tokens) > 1 else []


def _ascii(tokens: list[str]) -> list[str]:
    kept = (token.encode("ascii", "ignore").decode("ascii") for token in tokens)
    return [token for token in kept if token]


__all__ = [
    "SENTENCE_RULES", "default_sentences", "lovt_sentences", "medclip_sentences", "mgca_sentences", "sentence_spans",
           "sentences_of", "split_sentences"]  # fmt: skip
