"""What of a cache nearly is an image or a report: in private mode it must be named twice, and it is never pushed."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hub_server import local_hub
from PIL import Image
from synthetic import synthetic_config

from adaptor_hf import AdaptorModel
from adaptor_hf.audit.facts import pretraining_facts
from adaptor_hf.data.private_rows import private_rows
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.stored import StoredImages, StoredTexts
from adaptor_hf.hub import push_folder
from adaptor_hf.hub.push import files_to_push
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.privacy.messages import hide
from adaptor_hf.privacy.nearly_data import NEARLY_DATA, nearly_data
from adaptor_hf.training.preparation import check_no_tokens_beside
from adaptor_hf.training.script_arguments import DataArguments

KEY = b"k" * 32
# As `build_cache` takes them; `views` as a small number of views.
ASKED = {
    "image_tokens": "all", "regions": (2, 2), "image_attention": True, "views": 2,
    "text_tokens": True, "text_attention": True, "words": True, "sentences": True,
}  # fmt: skip
# One vector, or some, of the whole image; and what says how views are made.
KEPT = {"shallow", "view_recipe", "view_seed"}


@pytest.fixture(scope="module")
def towers(tiny_dinov2, tiny_bert):
    return str(tiny_dinov2), str(tiny_bert)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("canaryfolder")
    generator = np.random.default_rng(0)
    for row in range(6):
        Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"canaryfile{row}.png")
    return Dataset.from_dict({
        "image": [str(folder / f"canaryfile{row}.png") for row in range(6)],
        "text": [f"canaryword effusion {row} . canarysentence is seen ." for row in range(6)],
        "image_id": [f"canaryimage{row}" for row in range(6)],
        "patient_id": [f"canarypatient{row}" for row in range(6)],
        "split": ["train"] * 4 + ["validation"] * 2,
    })  # fmt: skip


def build(rows, towers, folder, **asked):
    return build_cache(rows, *towers, folder, batch_size=4, num_workers=0, **asked)


class TestNamed:
    def test_each_thing_that_a_cache_can_store_is_decided_on(self):
        stored = {field.name for kind in (StoredImages, StoredTexts) for field in fields(kind)}
        assert stored == {*NEARLY_DATA, *KEPT}
        assert ASKED.keys() == NEARLY_DATA.keys()

    @pytest.mark.parametrize("name", ASKED)
    def test_it_is_refused_in_private_mode_unless_it_is_named_a_second_time(self, name, rows, tmp_path):
        others = [other for other in ASKED if other != name]
        with private_mode.private_mode(KEY, columns=others), pytest.raises(ValueError, match="not store") as refused:
            # Before anything is read: there is no such tower.
            build(rows, ("no tower", "no tower"), tmp_path, **{name: ASKED[name]})
        assert f"--private_columns {name}, in Python private_mode(key, columns=...)" in str(refused.value)
        assert NEARLY_DATA[name] in str(refused.value)
        assert hide(str(refused.value)) == str(refused.value)
        assert not any(tmp_path.iterdir())
        with private_mode.private_mode(KEY, columns=[name]):
            private_mode.check_private_columns({name: ASKED[name]})
        private_mode.check_private_columns({name: ASKED[name]})

    def test_all_that_is_missing_is_named_at_once(self):
        with (
            private_mode.private_mode(KEY, columns=["words"]),
            pytest.raises(ValueError, match="text_tokens sentences,"),
        ):
            private_mode.check_private_columns({"shallow": (1,)}, {"text_tokens": True, "words": 1, "sentences": True})

    def test_a_name_that_is_none_is_said(self):
        with (
            pytest.raises(ValueError, match=r"columns must be of image_tokens, .*, got 'tokens'"),
            private_mode.private_mode(KEY, columns=["tokens"]),
        ):
            pass
        assert not private_mode.is_private()

    def test_what_was_named_ends_with_its_block(self, rows, tmp_path):
        with private_mode.private_mode(KEY, columns=["words"]):
            with private_mode.private_mode(KEY), pytest.raises(ValueError, match="--private_columns words"):
                private_mode.check_private_columns({"words": True})
            private_mode.check_private_columns({"words": True})

    def test_the_option_names_them_and_needs_private_mode(self, tmp_path, monkeypatch):
        monkeypatch.setattr(private_mode, "_key", None)
        monkeypatch.setattr(private_mode, "_keep_data_sets_aside", lambda: None)
        arguments = private_mode.PrivacyArguments(private_columns=["words"])
        with pytest.raises(ValueError, match="--private_columns would have no effect without --private"):
            private_mode.start_private_mode(arguments)
        arguments.private, arguments.key_file = True, str(tmp_path / "ids.key")
        private_mode.start_private_mode(arguments)
        private_mode.check_private_columns({"words": True})
        with pytest.raises(ValueError, match="--private_columns sentences"):
            private_mode.check_private_columns({"words": True, "sentences": True})

    def test_columns_of_views_and_scales_belong_to_them(self):
        names = ["embedding", "view_tokens", "view_tokens_scale", "shallow", "view_boxes", "words", "data"]
        assert nearly_data(names) == ["view_tokens", "view_tokens_scale", "view_boxes", "words"]


@pytest.fixture(scope="module")
def private_cache(rows, towers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private") / "embeddings"
    with private_mode.private_mode(KEY, columns=ASKED):
        build(private_rows(rows), towers, folder, **ASKED)
    return folder


class TestFiles:
    def test_every_column_is_there_and_has_no_text_or_id_in_the_clear(self, private_cache):
        stems = {path.name.rpartition("-")[0] for path in private_cache.rglob("*-00000.arrow")}
        expected = {*ASKED, "view_embeds", "view_tokens", "view_boxes", "data"} - {"views"}
        assert expected <= {stem.removesuffix("_scale") for stem in stems}
        for path in private_cache.rglob("*"):
            if path.is_file():
                assert b"canary" not in path.read_bytes().lower(), path
            if path.suffix == ".arrow":
                table = pa.ipc.open_stream(path.read_bytes()).read_all()
                kinds = {str(column.type) for column in table.columns if pa.types.is_string(column.type)}
                assert path.parent.name.startswith("pairs-") or not kinds

    def test_what_the_manifest_says_of_a_column_does_not_depend_on_the_data(
        self, private_cache, rows, towers, tmp_path
    ):
        other = rows.select([1, 0]).map(lambda row: {"text": "no effusion"})
        with private_mode.private_mode(KEY, columns=ASKED):
            build(private_rows(other), towers, tmp_path, **ASKED)
        assert said_of_columns(tmp_path) == said_of_columns(private_cache)
        assert len(said_of_columns(tmp_path)) == 10

    def test_only_the_owner_can_read_it(self, private_cache):
        assert all(path.stat().st_mode & 0o077 == 0 for path in [private_cache, *private_cache.rglob("*")])


def said_of_columns(cache: Path) -> dict:
    found = {}
    for path in cache.glob("*-*/cache.json"):
        for name, column in json.loads(path.read_text()).get("columns", {}).items():
            found[name] = {key: value for key, value in column.items() if key != "shards"}
    return found


def test_the_checklists_say_which_columns_nearly_are_data(tmp_path):
    stored = {"images": ["regions", "shallow"], "texts": ["words"]}
    (tmp_path / "run.json").write_text(json.dumps({"inputs": {"stored": stored}}))
    assert "The embeddings include regions, words, from which" in pretraining_facts(tmp_path)["private"]
    (tmp_path / "run.json").write_text(json.dumps({"inputs": {"stored": {"images": ["shallow"]}}}))
    assert "private" not in pretraining_facts(tmp_path)


FORK = multiprocessing.get_context("fork")
KEPT_HERE = {"image_tokens": "all", "text_tokens": True, "words": True, "sentences": True}


def build_watched(rows, towers, cache: str, kill_after: int, pipe) -> None:
    """Build with two rows a piece, and tell which places outside the cache are opened to be written or made."""
    outside, pieces = [], []

    def watch(event: str, arguments: tuple) -> None:
        if event == "os.rename" and "/piece-" in str(arguments[1]) and str(arguments[1]).endswith(".json"):
            pieces.append(arguments[1])
            if len(pieces) > kill_after:
                pipe.send(outside)
                os.kill(os.getpid(), signal.SIGKILL)
        opened = event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opened or event in ("os.mkdir", "tempfile.mkstemp", "tempfile.mkdtemp"):
            place = os.path.abspath(os.fsdecode(arguments[0]))
            if not place.startswith((cache, "/dev/")):
                outside.append(place)

    sys.addaudithook(watch)
    with private_mode.private_mode(KEY, columns=KEPT_HERE):
        build_cache(private_rows(rows), *towers, cache, batch_size=2, piece_rows=2, num_workers=1, **KEPT_HERE)
    pipe.send(outside)


@pytest.mark.parametrize("kill_after", [99, 1], ids=["whole", "killed"])
def test_nothing_is_written_but_in_the_cache_folder(kill_after, rows, towers, tmp_path, monkeypatch, request):
    # A short name: workers of a loader make sockets there, whose paths may have 108 characters.
    temporary = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", temporary / "hf")
    mine, its = FORK.Pipe()
    process = FORK.Process(target=build_watched, args=(rows, towers, str(tmp_path / "cache"), kill_after, its))
    process.start()
    its.close()
    outside = mine.recv()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if kill_after == 1 else 0)
    assert outside == []
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
    pieces = list((tmp_path / "cache").rglob("piece-*.arrow"))
    assert len(pieces) == (2 if kill_after == 1 else 0)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "cache").rglob("*"))


class TestPush:
    @pytest.fixture(scope="class")
    def tokens(self, rows, towers, tmp_path_factory):
        """A cache with tokens, and bytes of it that would tell."""
        folder = tmp_path_factory.mktemp("tokens") / "embeddings"
        build(rows, towers, folder, text_tokens=True, words=True)
        (path,) = folder.rglob("text_tokens-00000.arrow")
        return folder, path.read_bytes()[2000:2100]

    @pytest.fixture
    def model(self):
        return AdaptorModel(synthetic_config())

    def test_no_push_sends_a_cache_that_lies_in_the_folder(self, tokens, rows, towers, model, tmp_path):
        build(rows, towers, tmp_path / "embeddings")
        model.save_pretrained(tmp_path)
        with local_hub() as hub:
            push_folder(tmp_path, "name")
            assert set(hub.files) == set(files_to_push(tmp_path))
            assert not any("embeddings" in name or name.endswith(".arrow") for name in hub.files)
            assert b"canary" not in hub.received
            hub.files.clear()
            model.push_to_hub("name")
            assert {"config.json", "model.safetensors"} <= set(hub.files)
            assert not any("/" in name for name in hub.files)
            assert b"canary" not in hub.received
            assert all(one["visibility"] == "private" for one in hub.created)

    @pytest.mark.parametrize("place", ["", "embeddings", "checkpoint-3/deep/embeddings"])
    def test_a_folder_with_tokens_in_it_is_refused_before_anything_is_sent(self, place, tokens, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for path in tokens[0].iterdir():
            (tmp_path / place / path.name).symlink_to(path) if path.is_file() else copy(path, tmp_path / place)
        with local_hub() as hub:
            with pytest.raises(ValueError, match="an embedding cache in the model's folder holds text_tokens, words"):
                push_folder(tmp_path, "name")
            with pytest.raises(ValueError, match="The folder holds embeddings, and nothing was pushed"):
                model.save_pretrained(tmp_path, push_to_hub=True, repo_id="name")
            assert not hub.received
            # The model alone goes.
            model.push_to_hub("name")
            assert hub.files
            assert tokens[1] not in hub.received

    def test_a_run_that_is_to_be_pushed_is_told_before_it_trains(self, tmp_path, monkeypatch):
        monkeypatch.delenv("ADAPTOR_CACHE_DIR", raising=False)
        options = {"train_file": "pairs.csv", "words": True, "regions": "2x2"}
        inside = DataArguments(**options, cache_dir=str(tmp_path / "run" / "here"))
        with pytest.raises(ValueError, match=r"with --regions --words: .* another folder with --cache_dir"):
            check_no_tokens_beside(inside, str(tmp_path / "run"))
        check_no_tokens_beside(DataArguments(**options), str(tmp_path / "run"))
        vectors = DataArguments(train_file="pairs.csv", shallow=[1], cache_dir=inside.cache_dir)
        check_no_tokens_beside(vectors, str(tmp_path / "run"))

    def test_an_unfinished_build_is_refused_too(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        piece = tmp_path / "embeddings/texts-0/building-0/000000/piece-000000-0.arrow"
        piece.parent.mkdir(parents=True)
        piece.touch()
        with pytest.raises(ValueError, match="holds an unfinished build"):
            push_folder(tmp_path, "name")

    @pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")
    def test_what_changes_in_the_folder_during_a_save_would_be_sent_without_the_refusal(
        self, tokens, model, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("adaptor_hf.pretrained_adaptor._refuse_to_push_embeddings", lambda folder: None)
        (texts,) = tokens[0].glob("texts-*")
        upload = AdaptorModel._upload_modified_files

        def meanwhile(self, *args, **kwargs):
            copy(texts, tmp_path)
            return upload(self, *args, **kwargs)

        monkeypatch.setattr(AdaptorModel, "_upload_modified_files", meanwhile)
        with local_hub() as hub:
            model.save_pretrained(tmp_path, push_to_hub=True, repo_id="name")
        assert tokens[1] in hub.received


def copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to / folder.name)
