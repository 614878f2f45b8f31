"""What a build says and refuses before it computes, and what is said of one that is not finished."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings import pieces as pieces_module
from adaptor_hf.embeddings.__main__ import main
from adaptor_hf.towers_adaptor import load_text_tower


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> datasets.Dataset:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = [folder / f"{row}.png" for row in range(24)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
    texts = ["clear lungs " * (1 + row % 5) + str(row) for row in range(24)]
    return datasets.Dataset.from_dict({"image": [str(path) for path in paths], "text": texts})


@pytest.fixture(scope="module")
def towers(tiny_dinov2, tiny_bert) -> tuple[str, str]:
    return str(tiny_dinov2), str(tiny_bert)


def build(dataset, towers, folder: Path, **options):
    return build_cache(dataset, *towers, folder, batch_size=4, num_workers=0, piece_rows=8, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_tokens": 9}, "image_tokens asks for a grid of 9 x 9"),
        ({"text_attention": True, "image_tokens": 2}, "no class token, whose attention text_attention is"),
        ({"max_text_length": 40_000, "words": True}, "words and sentences are stored as int16"),
    ],
)
def test_what_a_tower_cannot_give_is_refused_before_anything_is_made(
    dataset, towers, tmp_path, computed, options, said
):
    text = load_text_tower(towers[1])
    if "text_attention" in options:
        text.processor.cls_token = None
    if "words" in options:
        text.spec["max_length"] = None
    with pytest.raises(ValueError, match=said):
        build(dataset, (towers[0], text), tmp_path / "cache", **options)
    assert computed == []
    assert not (tmp_path / "cache").exists()


def test_an_unfinished_build_is_verified_and_has_nothing_to_give_up(dataset, towers, tmp_path, capsys):
    records, write = [], pieces_module.write_record

    def interrupted(path, value):
        if len(records) == 2:
            raise KeyboardInterrupt
        records.append(path)
        write(path, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "write_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(dataset, towers, tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(": unfinished build: 2 pieces, whole")
    assert main(["repair", str(tmp_path)]) == 0
    assert "nothing to give up" in capsys.readouterr().out
    piece = max(tmp_path.rglob("piece-000001-*.arrow"))
    piece.write_bytes(piece.read_bytes()[:-8] + b"damaged!")
    assert main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert piece.name in said
    assert "The next build computes it again" in said
    build(dataset, towers, tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    assert "unfinished" not in capsys.readouterr().out


def test_that_the_tower_runs_again_for_something_else_is_said(dataset, towers, tmp_path, caplog):
    pooled = build(dataset, towers, tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO, "adaptor_hf.embeddings.modalities"):
        build(dataset, (towers[0], None), tmp_path, image_tokens=2, regions=(1, 2))
        (said,) = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
        assert said.startswith("all 24 images run through the tower again: what is stored is part of the key. 24 of")
        assert said.endswith(f"another folder, {pooled.manifest['images']}, with pooled vectors")
        caplog.clear()
        build(dataset, (towers[0], None), tmp_path, image_tokens=2, regions=(1, 2))
        build(dataset, (None, towers[1]), tmp_path, max_text_length=8)
        assert "again" not in caplog.text
        build(dataset, (towers[0], None), tmp_path, image_attention=True)
    assert "with pooled vectors and image_tokens and regions\n" in caplog.text


def test_pieces_with_views_take_as_many_passes(dataset, towers, tmp_path, computed):
    build(dataset, (towers[0], None), tmp_path, views=1, view_recipe="crop")
    assert computed == list(range(6))
