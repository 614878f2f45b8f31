"""Randomly initialised towers in folders, for benchmarks that need a tower's cost and not its weights."""

from pathlib import Path

WORDS = ["the", "heart", "lungs", "are", "clear", "enlarged", "no", "small", "large", "left", "right", "effusion"]


def save_bert(folder: Path, **config: int) -> Path:
    """A BertModel of this configuration with a WordPiece tokenizer of a few words, digits and letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [prefix + letter for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, "."]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokens), **config)).save_pretrained(folder)
    return folder


def save_vit(folder: Path, image_size: int = 224, **config: int) -> Path:
    """A ViTModel of this configuration with the usual image processor: resize the shorter side, crop, normalise."""
    import torch
    from transformers import BitImageProcessor, ViTConfig, ViTModel

    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=image_size, **config)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": image_size * 8 // 7}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(folder)
    return folder


TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TINY_VIT = TINY_BERT | {"image_size": 32, "patch_size": 16}
