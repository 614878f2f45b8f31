"""Caches under private mode, by their command: with all columns, of several sources, and their repair."""

import json

import datasets
import private_commands as plants
import pytest
from private_commands import CANARY, no_canary

from adaptor_hf.embeddings import open_cache
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.privacy.nearly_data import NEARLY_DATA

COMMANDS = {command.title: command for command in plants.commands()}
COLUMNS = [
    "--image_tokens", "all", "--regions", "2x2", "--image_attention", "--views", "2", "--shallow", "1",
    "--text_tokens", "--text_attention", "--words", "--sentences", "--dtype", "int8",
]  # fmt: skip


@pytest.fixture
def private(monkeypatch, tmp_path, capfd):
    """Runs a command under `ADAPTOR_PRIVATE=1` in a folder of its own; gives what it said."""
    monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    return lambda title, *words: plants.said_by(COMMANDS[title], words, capfd)


@pytest.fixture
def words(tmp_path_factory, tiny_dinov2, tiny_bert):
    """Of a build of a planted table, by its image column."""
    folder = tmp_path_factory.mktemp("planted")
    table = plants.plant_table(folder / "a", rows=12)
    towers = ["--vision_tower", str(tiny_dinov2), "--text_tower", str(tiny_bert)]
    return [str(table), "--image_column", "image", *towers, "--key_file", str(folder / f"{CANARY}.key"),
            "--num_workers", "0"]  # fmt: skip


def test_a_cache_with_all_columns_is_built_read_and_repaired_without_a_canary(private, words, tmp_path):
    said = private("embeddings build", *words, *COLUMNS)
    assert "Private mode does not store image_tokens (an image can be made" in said
    assert f"--private_columns {' '.join(NEARLY_DATA)}," in said
    assert not (tmp_path / "outputs/private-embeddings").exists()
    no_canary(said)

    said = private("embeddings build", *words, *COLUMNS, "--private_columns", *NEARLY_DATA)
    assert "rows: 12" in said
    no_canary(said, tmp_path)
    # Not where runs that are not private keep theirs: only its owner can read it.
    cache = tmp_path / "outputs/private-embeddings"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [cache.name]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [cache, *cache.rglob("*")])
    assert len(open_cache(cache).stored_columns) == 11
    assert private("embeddings build", *words, *COLUMNS, "--private_columns", *NEARLY_DATA).count("rows/s") == 0

    (tokens,) = cache.rglob("text_tokens-00000.arrow")
    data = tokens.read_bytes()
    tokens.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    for title in ("embeddings info", "embeddings verify", "embeddings repair", "embeddings info", "embeddings verify"):
        no_canary(private(title, str(cache)), tmp_path)
    no_canary(private("embeddings build", *words, *COLUMNS, "--private_columns", *NEARLY_DATA), tmp_path)
    assert "whole" in private("embeddings verify", str(cache))


def test_an_estimate_and_what_stops_a_build_say_no_canary(private, words, tmp_path):
    said = private("embeddings build", *words, "--dry_run")
    assert "What could be kept of 12 images and 12 texts" in said
    no_canary(said, tmp_path)
    for more in (
        ["--image_tokens", CANARY], ["--regions", CANARY], ["--private_columns", CANARY], ["--layers", CANARY],
        ["--private_columns", "words", CANARY], ["--view_recipe", CANARY], ["--text_column", CANARY],
        ["--vision_pooling", CANARY], ["--cache_dir", f"/dev/null/{CANARY}"], ["--shallow", "99"], ["--layers", "99"],
    ):  # fmt: skip
        said = private("embeddings build", *words, *more)
        assert "error" in said, more
        no_canary(said, tmp_path)


def test_names_of_several_sources_are_said_and_written_as_hashes(private, words, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    first, second = words[0], plants.plant_table(folder / "b", rows=8)
    other = second.rename(second.with_name(f"{CANARY} east.csv"))
    named = ["--train_file", first, str(other), *words[1:]]
    said = private("embeddings build", *named, "--words", "--private_columns", "words")
    assert "rows: 20" in said, said
    no_canary(said, tmp_path)
    cache = open_cache(tmp_path / "outputs/private-embeddings")
    assert len(set(cache.pairs["source"][:])) == 2

    output = ["--output_dir", "outputs/run", "--aligner",
              '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}', "--use_cpu",
              "--num_train_epochs", "1", "--global_batch_size", "4", "--duplicates", "keep"]  # fmt: skip
    pretrain = [word for word in named if word not in ("--num_workers", "0")]
    said = private("train_pretrain", *pretrain, *output, "--words", "True", "--private_columns", "words")
    assert "error" not in said, said
    assert "images: " not in said, "the cache is that of the other command"
    no_canary(said, tmp_path)
    record = json.loads((tmp_path / "outputs/run/run.json").read_text())
    assert record["inputs"]["stored"] == {"texts": ["words"]}
    assert "words" not in (tmp_path / "outputs/run/README.md").read_text()
