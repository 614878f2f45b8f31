"""Reports of another language: what a text tower does not know is counted, and nothing of the texts is shown."""

import string

import pytest
import torch
from datasets import Dataset

from adaptor_hf.embeddings import build_cache
from adaptor_hf.towers import load_text_tower
from adaptor_hf.towers.coverage import describe_coverage, text_coverage


def test_cut_and_unknown_shares_are_counted_exactly(tiny_bert):
    tokenizer = load_text_tower(str(tiny_bert)).processor
    # 3 and 4 known words; é and ü are not in the vocabulary: [UNK] for the whole word.
    found = text_coverage(tokenizer, ["no pleural effusion", "the heart is enlarged", "ü é normal heart"], 5)
    assert (found.texts, found.cut) == (3, pytest.approx(2 / 3))
    stripped = tokenizer("ü é", add_special_tokens=False)["input_ids"]
    expected = stripped.count(tokenizer.unk_token_id) / (3 + 4 + len(stripped) + 2)
    assert found.unknown == pytest.approx(expected)
    line = describe_coverage("tower", found, 5)
    assert "66.7% are cut at 5 tokens" in line
    assert "effusion" not in line
    with pytest.raises(ValueError, match="empty"):
        text_coverage(tokenizer, [], 5)


def test_another_alphabet_is_unknown(tiny_bert):
    tokenizer = load_text_tower(str(tiny_bert)).processor
    assert text_coverage(tokenizer, ["胸腔 积液", "нет выпота"], 112).unknown == 1.0


def test_a_multilingual_tower_loads_by_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    words = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *("kein erguss sin derrame pas d épanchement" + " ".join(string.digits)).split(),
    ]
    plain = Tokenizer(models.WordLevel({word: code for code, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=64, **special).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    XLMRobertaModel(
        XLMRobertaConfig(vocab_size=len(words), max_position_embeddings=66, **sizes), add_pooling_layer=False
    ).save_pretrained(tmp_path)
    tower = load_text_tower(str(tmp_path))
    batch = tower.processor(["kein erguss", "sin derrame"], padding=True, return_tensors="pt")
    output = tower(**batch)
    assert output.pooler_output.shape == (2, 16)
    assert (tower.spec["pooling"], tower.spec["max_length"]) == ("cls", 64)
    assert text_coverage(tower.processor, ["kein erguss"], 64).unknown == 0


def test_the_dry_run_prints_the_shares_and_no_text(tiny_dinov2, tiny_bert, radiographs, tmp_path):
    from adaptor_hf.training import AdaptorTrainingArguments
    from adaptor_hf.training.dry_run import estimate_run
    from adaptor_hf.training.script_arguments import DataArguments, ModelArguments

    paths = sorted(map(str, radiographs.glob("*.jpg")))[:4]
    texts = ["выпота нет", "пневмоторакс", "canary canary", "сердце"]
    table = Dataset.from_dict({"image": paths, "image_id": paths, "text": texts, "split": ["train"] * 4})
    data = DataArguments(train_file="pairs.csv", extraction_batch_size=2, max_text_length=16)
    model = ModelArguments(vision_tower=str(tiny_dinov2), text_tower=str(tiny_bert), aligner={"hidden_size": 48})
    arguments = AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True, global_batch_size=4, max_steps=1)
    printed = estimate_run(table, data, model, arguments)
    assert "of the tokens are unknown to the tower" in printed
    assert "multilingual or national" in printed
    assert not any(word in printed for text in texts for word in text.split())
    assert str(tiny_bert) not in printed


def test_a_build_prints_the_shares_of_each_text_tower(tiny_bert, tmp_path, caplog):
    texts = ["no pleural effusion", "胸腔 积液", "the heart is enlarged"]
    table = Dataset.from_dict({"text": texts, "split": ["train"] * 3})
    with caplog.at_level("INFO"):
        build_cache(table, text_tower=str(tiny_bert), cache_dir=tmp_path, max_text_length=5, num_workers=0)
    tokenizer = load_text_tower(str(tiny_bert)).processor
    ids = tokenizer(texts)["input_ids"]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids) / sum(map(len, ids))
    long = sum(len(row) > 5 for row in ids) / 3
    assert f"of 3 new texts {100 * long:.1f} % are cut at 5 tokens, {100 * unknown:.2f} % of the tokens" in caplog.text
    assert unknown > 0
    assert "积液" not in caplog.text
