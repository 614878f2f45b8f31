"""
How much of a text or of a radiograph comes back from what an embedding cache stores of it.

    python benchmarks/invert_tokens.py
    ADAPTOR_REALBENCH=FOLDER python benchmarks/invert_tokens.py

The attacker has the public tower and what the cache stores. What is learned is linear: more is lost to who tries
harder. Towers are real: minilm and lite0, of the extra `demo`. Attacked are reports and images of phantoms, and with
ADAPTOR_REALBENCH the clinical notes and radiographs of that folder; patients that are attacked are not learned from.

Texts. From token vectors: a ridge regression from each to the vector that the tower's first layer looks up for a token;
the nearest one of the whole vocabulary is the guess. It is learned with the tower alone, on random sequences of its
vocabulary, or on other texts of the same kind. From pooled vectors: a ridge regression to which tokens are in a text,
learned on other texts of the same kind. Beside it, without any vector: the most frequent tokens of those.

Images. A ridge regression from what is stored to the image at 32 x 32, learned on other patients' images. Beside it:
the mean image. "Found" is the share of test images of which the image made from the vectors is nearer (correlation,
after the mean image is taken off) to the true one than to that of any other.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_table
from sklearn.linear_model import Ridge, RidgeCV

from adaptor_hf.embeddings.columns import quantized
from adaptor_hf.towers import load_text_tower, load_vision_tower

ALPHAS = np.logspace(-2, 5, 8)
TOKEN_ALPHA = 10.0  # what a search over ALPHAS chose on phantoms
SIDE = 32


def data_of(folder: Path, phantoms: int, only: str) -> Iterator[tuple[str, Any]]:
    """Names and rows with image, text and patient_id, of the sets whose name has `only` in it."""
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.phantom import write_phantoms

    columns = {"image_column": "image", "patient_column": "patient_id", "split_column": "split"}
    table = Path(os.environ.get("ADAPTOR_REALBENCH", ""), "metadata.csv")
    sets = {
        "phantoms": lambda: load_pairs(write_phantoms(folder / "phantoms", phantoms)),
        "clinical notes of covidcxr": lambda: load_pairs(table, filters=["dataset=covidcxr"], **columns),
        "radiographs of NIH ChestX-ray14": lambda: load_pairs(
            table, filters=["dataset=nih14"], text_column=None, **columns
        ),
    }
    for name, load in sets.items():
        if only in name and (name == "phantoms" or "ADAPTOR_REALBENCH" in os.environ):
            yield name, load()


def run_texts(tower, texts: list[str] | list[list[int]]) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Token ids, float16 token vectors and pooled vectors of texts, each without its padding; special tokens stay."""
    ids, tokens, pooled = [], [], []
    order = range(0, len(texts), 32)
    for start in order:
        part = texts[start : start + 32]
        if isinstance(part[0], str):
            encoded = tower.processor(part, truncation=True, max_length=112, padding=True, return_tensors="pt")
        else:
            encoded = tower.processor.pad({"input_ids": part}, return_tensors="pt")
        with torch.inference_mode():
            output = tower(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        pooled.append(output.pooler_output.numpy())
        for row, mask in enumerate(encoded["attention_mask"].bool()):
            ids.append(encoded["input_ids"][row][mask].numpy())
            tokens.append(output.last_hidden_state[row][mask].numpy().astype(np.float16).astype(np.float32))
    return ids, tokens, np.concatenate(pooled)


def words_of(tower) -> np.ndarray:
    """Ids of all tokens but the special ones and the unused places of the vocabulary."""
    names = tower.processor.get_vocab()
    special = {*tower.processor.all_special_tokens, *(name for name in names if name.startswith("[unused"))}
    return np.sort([number for name, number in names.items() if name not in special])


def random_texts(tower, generator: np.random.Generator, count: int = 3000, length: int = 48) -> list[list[int]]:
    tokenizer = tower.processor
    drawn = generator.choice(words_of(tower), (count, length - 2))
    ends = np.array([[tokenizer.cls_token_id, tokenizer.sep_token_id]]).repeat(count, 0)
    return np.concatenate([ends[:, :1], drawn, ends[:, 1:]], axis=1).tolist()


def whitened(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    vectors = vectors - mean
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def nearest(vectors: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(n,) row of the candidate of the largest inner product, in blocks."""
    blocks = np.array_split(vectors, max(1, len(vectors) // 2048))
    return np.concatenate([(block @ candidates.T).argmax(axis=1) for block in blocks])


def attack_tokens(tower, known: dict[str, tuple], ids, tokens) -> list[list]:
    """Rows of the table for each of what an attacker may know: token ids and their vectors."""
    embeddings = tower.model.get_input_embeddings().weight.detach().numpy()
    mean, words = embeddings.mean(axis=0), words_of(tower)
    candidates = whitened(embeddings[words], mean)
    ends = np.cumsum([len(row) for row in ids])[:-1]
    stored = np.concatenate(tokens)
    steps, scale = quantized(stored)
    rows = []
    for attacker, (known_ids, known_tokens) in known.items():
        ridge = Ridge(TOKEN_ALPHA, solver="cholesky").fit(
            np.concatenate(known_tokens), embeddings[np.concatenate(known_ids)]
        )
        for name, values in (("float16", stored), ("int8", steps * scale[..., None])):
            guess = words[nearest(whitened(ridge.predict(values), mean), candidates)]
            rows.append([f"text_tokens, {name}", attacker, *recovered(np.split(guess, ends), ids)])
    return rows


def recovered(guessed: list[np.ndarray], ids: list[np.ndarray]) -> list[str]:
    pairs = [(guess[1:-1], own[1:-1]) for guess, own in zip(guessed, ids, strict=True)]
    places = [guess == own for guess, own in pairs]
    words = [np.isin(np.unique(own), guess).mean() for guess, own in pairs]
    whole = [[row.all() for row in places], [row.mean() >= 0.9 for row in places]]
    return [share(np.concatenate(places).mean()), share(np.mean(words)), *(share(np.mean(one)) for one in whole)]


def attack_pooled(ids, pooled, learned: np.ndarray) -> list[list]:
    """Rows of the table: share of each test text's different tokens that are among as many guesses."""
    bags = [np.unique(row[1:-1]) for row in ids]
    kinds = np.unique(np.concatenate(bags))
    present = np.stack([np.isin(kinds, bag) for bag in bags]).astype(np.float32)
    frequency = present[learned].mean(axis=0)
    ridge = RidgeCV(ALPHAS).fit(pooled[learned], present[learned])
    rows = []
    for name, scores in (
        ("pooled vector, float16", ridge.predict(pooled[~learned].astype(np.float16).astype(np.float32))),
        ("no vector: the most frequent tokens", np.broadcast_to(frequency, present[~learned].shape)),
    ):
        hits = []
        for score, truth in zip(scores, present[~learned].astype(bool), strict=True):
            guess = np.argsort(-score, kind="stable")[: truth.sum()]
            hits.append(truth[guess].mean())
        rows.append([name, "other texts", "", share(np.mean(hits)), "", ""])
    return rows


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def halves(rows, generator) -> np.ndarray:
    """(n,) whether a row is learned from: half of the patients."""
    patients = np.array([str(value) for value in rows["patient_id"][:]])
    distinct = np.unique(patients)
    return np.isin(patients, generator.permutation(distinct)[: len(distinct) // 2])


def attack_texts(tower, name: str, rows, generator) -> None:
    texts = np.array([text or "" for text in rows["text"][:]])
    kept = np.array([bool(text.strip()) for text in texts])
    learned = halves(rows, generator)[kept]
    ids, tokens, pooled = run_texts(tower, texts[kept].tolist())
    # Texts that the pooled attacker has seen word for word are nobody's secret.
    seen = {tuple(row) for row, own in zip(ids, learned, strict=True) if own}
    new = np.array([own or tuple(row) not in seen for row, own in zip(ids, learned, strict=True)])
    ids, tokens = [ids[i] for i in np.nonzero(new)[0]], [tokens[i] for i in np.nonzero(new)[0]]
    pooled, learned = pooled[new], learned[new]
    tested = np.nonzero(~learned)[0]
    count = sum(len(ids[i]) - 2 for i in tested)
    print(f"\n### Texts, {name}: {len(tested)} texts of {count} tokens, minilm\n")
    own = np.nonzero(learned)[0]
    known = {"tower alone": run_texts(tower, random_texts(tower, generator))[:2]}
    known["other texts"] = [ids[i] for i in own], [tokens[i] for i in own]
    table = attack_tokens(tower, known, [ids[i] for i in tested], [tokens[i] for i in tested])
    table += attack_pooled(ids, pooled, learned)
    print_table(["stored", "known", "tokens, each in its place", "different tokens of a text", "texts recovered whole",
                 "texts to 90 %"], table)  # fmt: skip


def image_columns(tower, rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Name of what is stored -> (n, values); and (n, SIDE * SIDE) images from 0 to 1, each the tower's square cut."""
    pooled, maps, pictures = [], [], []
    for start in range(0, len(rows), 16):
        images = rows[start : start + 16]["image"]
        pixels = tower.processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = tower(pixel_values=pixels)
        pooled.append(output.pooler_output.numpy())
        maps.append(output.last_hidden_state.numpy().astype(np.float16))
        grey = pixels.mean(dim=1, keepdim=True)
        pictures.append(torch.nn.functional.interpolate(grey, (SIDE, SIDE), mode="area").flatten(1).numpy())
    maps = np.concatenate(maps)
    side = round(maps.shape[1] ** 0.5)
    square = torch.from_numpy(maps.astype(np.float32)).transpose(1, 2).unflatten(2, (side, side))
    grid = torch.nn.functional.adaptive_avg_pool2d(square, 4).flatten(1).numpy()
    steps, scale = quantized(maps.astype(np.float32))
    stored = {"pooled vector": np.concatenate(pooled), "image_tokens 4": grid}
    stored[f'image_tokens "all" ({side} x {side})'] = maps.reshape(len(maps), -1).astype(np.float32)
    stored['image_tokens "all", int8'] = (steps * scale[..., None]).reshape(len(maps), -1)
    pictures = np.concatenate(pictures)
    low, high = pictures.min(axis=1, keepdims=True), pictures.max(axis=1, keepdims=True)
    return stored, (pictures - low) / (high - low)


def attack_images(tower, name: str, rows, generator) -> None:
    learned = halves(rows, generator)
    stored, pictures = image_columns(tower, rows)
    mean = pictures[learned].mean(axis=0)
    truth = pictures[~learned]
    print(f"\n### Images, {name}: {len(truth)} of patients whose images were not learned from, lite0\n")
    table = []
    for column, values in stored.items():
        spread = values[learned].std()
        ridge = RidgeCV(ALPHAS * values.shape[1] / 1000).fit(values[learned] / spread, pictures[learned])
        table.append([column, *compared(ridge.predict(values[~learned] / spread), truth, mean)])
    guess = np.broadcast_to(mean, truth.shape)
    error = np.sqrt(np.square(guess - truth).mean())
    table.append(["nothing: the mean image", f"{error:.3f}", share(0), share(1 / len(truth))])
    print_table(["stored", "error of a pixel (0 to 1)", "of the variance", "found"], table)


def compared(made: np.ndarray, truth: np.ndarray, mean: np.ndarray) -> list[str]:
    error = np.square(made - truth)
    explained = 1 - error.sum() / np.square(mean - truth).sum()
    made, own = whitened(made, mean), whitened(truth, mean)
    found = (nearest(made, own) == np.arange(len(own))).mean()
    return [f"{np.sqrt(error.mean()):.3f}", share(explained), share(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=300, help="Images with reports.")
    parser.add_argument("--images", type=int, default=500, help="At most so many images of a set.")
    parser.add_argument("--only", default="", help="Of the sets, those whose name has this in it, such as notes.")
    options = parser.parse_args()
    torch.manual_seed(0)
    text_tower, vision_tower = load_text_tower("minilm").eval(), load_vision_tower("lite0").eval()
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in data_of(Path(folder), options.phantoms, options.only):
            if "radiographs" not in name:
                attack_texts(text_tower, name, rows, np.random.default_rng(0))
            if "notes" not in name:
                some = rows.select(range(min(options.images, len(rows))))
                attack_images(vision_tower, name, some, np.random.default_rng(0))


if __name__ == "__main__":
    main()
