"""Which tokens the words and sentences of a text are, by two ways and three kinds of tokenizer."""

import numpy as np
import pytest
from test_extract import ALL_TEXTS, REPORTS, rows_of
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from adaptor_hf.data.report_sentences import sentence_spans, split_sentences
from adaptor_hf.embeddings.text_batches import token_spans
from adaptor_hf.towers import load_text_tower


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(REPORTS, trained)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def metaspace() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's: words are what stands between blanks, with their marks."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        REPORTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", pad_token="<pad>", unk_token="<unk>")


TOKENIZERS = {"bert": lambda: load_text_tower("minilm").processor, "bpe": byte_level, "unigram": metaspace}


def without_last_blank(spans: np.ndarray, tokens: list[str]) -> list[list[int]]:
    """What a cut leaves of the last word may be the blank before it alone."""
    spans = spans.tolist()
    while spans and not tokens[spans[-1][1] - 1].strip("Ġ▁"):
        spans[-1][1] -= 1
        spans = [span for span in spans if span[0] < span[1]]
    return spans


class TestSpans:
    @pytest.fixture(scope="class", params=TOKENIZERS)
    def tokenizer(self, request):
        return TOKENIZERS[request.param]()

    def encode(self, tokenizer, texts, **arguments):
        encoded = tokenizer(texts, return_offsets_mapping=True, **arguments)
        return encoded, token_spans(encoded, texts, ALL_TEXTS)

    def test_words_are_the_pre_tokenizers_pieces_of_the_text(self, tokenizer):
        encoded, spans = self.encode(tokenizer, REPORTS)
        backend = tokenizer.backend_tokenizer
        for row, text in enumerate(REPORTS):
            clean = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(clean) if piece.strip("Ċ▁Ġ")]
            words = rows_of(spans["words"])[row]
            assert len(words) == len(pieces)
            tokens = encoded.tokens(row)
            # They follow each other, and leave only special tokens and white space.
            left = set(range(len(tokens))) - {place for start, stop in words for place in range(start, stop)}
            assert left >= {0, len(tokens) - 1}
            assert all(not tokens[place].strip("Ċ▁Ġ") for place in left - {0, len(tokens) - 1})
            assert (words[1:, 0] >= words[:-1, 1]).all()
            for (start, stop), piece in zip(words, pieces, strict=True):
                joined = "".join(token.removeprefix("##") for token in tokens[start:stop])
                assert joined == piece or "[UNK]" in joined or "<unk>" in joined

    def test_words_by_the_characters_of_their_tokens(self, tokenizer):
        """A second way: where the text has a blank, a word ends."""
        encoded, spans = self.encode(tokenizer, REPORTS)
        for row, text in enumerate(REPORTS):
            offsets = encoded["offset_mapping"][row]
            for start, stop in rows_of(spans["words"])[row]:
                characters = text[offsets[start][0] : offsets[stop - 1][1]].strip()
                assert characters
                assert len(characters.split()) == 1

    def test_sentences_are_the_tokens_of_their_text(self, tokenizer):
        encoded, spans = self.encode(tokenizer, REPORTS)
        for row, text in enumerate(REPORTS):
            offsets, found = encoded["offset_mapping"][row], rows_of(spans["sentences"])[row]
            places = sentence_spans(text)
            assert len(found) == len(places)
            for (start, stop), (first, last) in zip(found, places, strict=True):
                is_text = [number is not None for number in encoded.sequence_ids(row)]
                letters = [set(range(*place)) & set(range(first, last)) for place in offsets]
                touching = [i for i, found in enumerate(letters) if is_text[i] and text[min(found, default=0)].strip()]
                touching = [i for i in touching if letters[i]]
                assert (start, stop) == (touching[0], touching[-1] + 1)
                shown = text[offsets[start][0] : offsets[stop - 1][1]].split()
                assert " ".join(shown).rstrip("'") == " ".join(text[first:last].split())
        assert [len(rows) for rows in rows_of(spans["sentences"])] == [2, 3, 1, 1, 0, 3]

    def test_a_cut_text_has_what_is_left(self, tokenizer):
        _, whole = self.encode(tokenizer, REPORTS)
        for length in (2, 3, 5, 9, 14):
            encoded, spans = self.encode(tokenizer, REPORTS, truncation=True, max_length=length)
            for name in ("words", "sentences"):
                for row, found in enumerate(rows_of(spans[name])):
                    end = len(encoded["input_ids"][row]) - 1
                    before = rows_of(whole[name])[row]
                    expected = np.minimum(before[before[:, 0] < end], end)
                    tokens = encoded.tokens(row)
                    assert without_last_blank(found, tokens) == without_last_blank(expected, tokens), (name, length)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_is_not_counted(self, tokenizer, side):
        _, expected = self.encode(tokenizer, REPORTS)
        _, found = self.encode(tokenizer, REPORTS, padding=True, padding_side=side)
        for name in ("words", "sentences"):
            assert np.array_equal(found[name].values, expected[name].values)
            assert np.array_equal(found[name].offsets, expected[name].offsets)

    def test_borders_are_those_of_the_sentences(self):
        for text in REPORTS:
            cut = [" ".join(text[start:stop].split()) for start, stop in sentence_spans(text)]
            assert cut == split_sentences(text) or "quotes" in text
        assert sentence_spans("a. 1. B c.\n\n ___ \n d ") == [(0, 2), (6, 10), (13, 20)]
