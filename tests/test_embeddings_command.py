"""`python -m adaptor_hf.embeddings build` beside train_pretrain.py: the same options, the same cache, nothing twice."""

import json
import logging
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

import train_pretrain
from adaptor_hf.data.reading import Reading
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.embeddings.__main__ import main as embeddings
from adaptor_hf.embeddings.columns import Column
from adaptor_hf.embeddings.estimate import _SAMPLE, column_bytes, estimate_cache
from adaptor_hf.embeddings.place import CACHE_DIR, place_of_cache
from adaptor_hf.files import aside_of
from adaptor_hf.frozen_towers_adaptor import TextTower, VisionTower
from adaptor_hf.privacy import messages, mode
from adaptor_hf.privacy.mode import private_mode
from adaptor_hf.towers import load_text_tower
from adaptor_hf.verify import verification

SMALL = {"aligner": '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}', "max_steps": 1,
         "use_cpu": True, "global_batch_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """24 pairs of 12 patients, every image and report another one."""
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    lines = ["path,report,subject,view,part"]
    for row in range(24):
        Image.fromarray(generator.integers(0, 255, (40, 36)).astype(np.uint8)).save(folder / f"{row}.png")
        view, part = "PA" if row % 4 else "AP", "train" if row // 2 % 3 else "val"
        lines.append(f"{row}.png,small effusion of size {row},subject-{row // 2},{view},{part}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


@pytest.fixture
def broken(table, tmp_path) -> Path:
    """The same pairs; four of the images are not there."""
    lines = table.read_text().splitlines()
    rows = [f"{table.parent}/{line}" if row % 6 else f"gone-{line}" for row, line in enumerate(lines[1:])]
    (tmp_path / "broken.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    return tmp_path / "broken.csv"


@pytest.fixture
def options(table, tiny_dinov2, tiny_bert) -> dict:
    """Of table, split and towers, as both commands take them."""
    return {
        "train_file": table, "image_column": "path", "text_column": "report", "patient_column": "subject",
        "validation_fraction": 0.25, "test_fraction": 0.25, "vision_tower": tiny_dinov2, "text_tower": tiny_bert,
    }  # fmt: skip


@pytest.fixture
def counted(monkeypatch) -> dict[str, int]:
    """How many images were read and embedded, and how many texts were embedded, since the last `clear`."""
    counts = {"read": 0, "images": 0, "texts": 0}
    # What a process of its own reads would not be counted here.
    monkeypatch.setattr("adaptor_hf.embeddings.build.worker_count", lambda on_cuda: 0)

    def count(owner, name, what, size):
        method = getattr(owner, name)

        def counting(self, *args, **kwargs):
            counts[what] += size(*args, **kwargs)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(Reading, "read", "read", lambda *args, **kwargs: 1)
    count(VisionTower, "_encode", "images", lambda pixels, *args, **kwargs: len(pixels))
    count(TextTower, "forward", "texts", lambda input_ids, **kwargs: len(input_ids))
    return counts


@pytest.fixture
def private_process(monkeypatch, tmp_path):
    """What private mode changes in the process comes back after the test."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(mode, "_key", None)
    monkeypatch.setattr(messages, "_places", [])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    yield
    messages.show_messages()


def words(options: dict) -> list[str]:
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [word for name, values in listed.items() for word in (f"--{name}", *map(str, values))]


def build(options: dict, *more: str) -> int:
    return embeddings(["build", *words(options), "--num_workers", "0", "--device", "cpu", *more])


def train(output: Path, options: dict, *more: str) -> None:
    train_pretrain.main([*words({**options, **SMALL, "output_dir": output}), *more])


def clear(counts: dict[str, int]) -> None:
    counts.update(dict.fromkeys(counts, 0))


class TestOneKey:
    def test_training_after_a_build_reads_no_image_and_runs_no_tower(self, options, counted, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        clear(counted)
        assert build(options) == 0
        assert counted == {"read": 24, "images": 24 + 1, "texts": 24}  # and the tower's empty image
        clear(counted)
        train(Path("outputs/run"), options)
        assert counted == {"read": 0, "images": 0, "texts": 0}
        assert not Path("outputs/run/embeddings").exists()
        (pairs,) = Path("outputs/embeddings").glob("pairs-*")
        assert json.loads(Path("outputs/run/run.json").read_text())["inputs"]["cache"] == f"../embeddings/{pairs.name}"
        Path("outputs").rename("moved")
        found = verification(Path("moved/run"))
        assert (found.differences, found.unchecked) == ([], [])
        Path("moved").rename("outputs")
        # And a second run, in another folder.
        train(Path("outputs/other"), options)
        assert counted == {"read": 0, "images": 0, "texts": 0}

    @pytest.mark.parametrize(
        "changes",
        [{"filter": ["view=PA"]}, {"train_fraction": 0.5}, {"split_seed": 3, "max_text_length": 8},
         {"split_column": "part", "split_alias": ["validation=test"], "view_column": "view"},
         {"image_mode": "RGB", "embedding_dtype": "float32", "vision_pooling": "mean"}],
    )  # fmt: skip
    def test_every_option_of_table_split_and_towers_means_the_same(self, options, changes, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options |= changes
        assert build(options) == 0
        built = open_cache("outputs/embeddings")
        data, model, run, training = train_pretrain.parse_arguments(words({**options, "output_dir": "outputs/run"}))
        cache = train_pretrain.cache_of_pairs(train_pretrain.load_training_pairs(data, run), data, model, training)
        assert (cache.path, cache.fingerprint) == (built.path, built.fingerprint)
        assert len(list(Path("outputs/embeddings").glob("*-*/"))) == 3

    def test_faults_that_a_build_accepts_a_run_accepts(self, options, broken, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options["train_file"] = broken
        assert build(options) == 1
        options["max_fault_fraction"] = 0.25
        assert build(options) == 0
        built = open_cache("outputs/embeddings")
        given = {**options, "output_dir": "outputs/run"}
        data, model, run, training = train_pretrain.parse_arguments(words(given))
        cache = train_pretrain.cache_of_pairs(train_pretrain.load_training_pairs(data, run), data, model, training)
        assert (cache.path, len(cache)) == (built.path, 20)
        assert len(list(Path("outputs/embeddings").glob("*-*/"))) == 3
        with pytest.raises(ValueError, match=r"more than max_fault_fraction=0\.05"):
            train(Path("outputs/run"), {**options, "max_fault_fraction": 0.05})
        with pytest.raises(ValueError, match=r"--max_fault_fraction 5\.0: expected a share from 0 to 1"):
            train(Path("outputs/run"), {**options, "max_fault_fraction": 5})

    def test_several_tables_with_a_vision_tower_alone_need_no_texts(self, options, table, tmp_path):
        other = tmp_path / "other.csv"
        other.write_text(f"path\n{table.parent / '0.png'}\n{table.parent / '1.png'}\n")
        given = words({"train_file": [other, table], "image_column": "path", "vision_tower": options["vision_tower"]})
        place = str(tmp_path / "cache")
        assert embeddings(["build", *given, "--num_workers", "0", "--device", "cpu", "--cache_dir", place]) == 0
        assert len(open_cache(place)) == 26

    def test_a_private_build_says_its_last_words_where_it_is_started(self, options, tmp_path):
        given = words({**options, "key_file": "ids.key", "num_workers": 0, "device": "cpu"})
        command = [sys.executable, "-m", "adaptor_hf.embeddings", "build", *given, "--private"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        assert "Next run: train_pretrain.py with --private" in ended.stderr
        assert "which is hidden" not in ended.stderr

    def test_a_private_build_is_the_private_runs(
        self, options, counted, tmp_path, monkeypatch, private_process, capsys, caplog
    ):
        monkeypatch.chdir(tmp_path)
        with caplog.at_level("INFO"):
            assert build(options, "--private", "--key_file", "ids.key") == 0
        said = capsys.readouterr()
        cache = open_cache("outputs/private-embeddings")
        assert not any(value.startswith("subject") for value in cache.pairs["patient_id"][:])
        assert "Next run: train_pretrain.py with --private" in caplog.text
        for name in ("pairs.csv", "subject", str(cache.path), str(tmp_path)):
            assert name not in said.out + said.err
        clear(counted)
        train(Path("outputs/run"), options, "--private", "True", "--key_file", "ids.key")
        assert counted["read"] == 0
        assert len(list(Path("outputs/private-embeddings").glob("*-*/"))) == 3
        recorded = json.loads(Path("outputs/run/run.json").read_text())["inputs"]["cache"]
        assert recorded == f"../private-embeddings/{cache.path.name}"

    def test_a_rebuild_embeds_all_anew_but_not_where_a_run_is_resumed(self, options, counted, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert build(options) == 0
        clear(counted)
        assert build(options, "--rebuild") == 0
        assert (counted["read"], counted["texts"]) == (24, 24)
        clear(counted)
        train(Path("outputs/run"), options, "--rebuild")
        assert (counted["read"], counted["texts"]) == (24, 24)
        clear(counted)
        train(Path("outputs/run"), options, "--rebuild", "--resume_from_checkpoint", "True")
        assert (counted["read"], counted["texts"]) == (0, 0)

    def test_the_reference_code_has_another_name_for_it(self, tmp_path):
        with pytest.raises(ValueError, match=r"no option '--force_rebuild_dataset'\. Here it is --rebuild\."):
            train_pretrain.main(["--force_rebuild_dataset", "--output_dir", str(tmp_path)])

    def test_the_next_command_that_is_said_runs(self, options, tmp_path, monkeypatch, caplog):
        monkeypatch.chdir(tmp_path)
        place = tmp_path / "a folder's $HOME"
        with caplog.at_level("INFO"):
            assert build(options, "--cache_dir", str(place), "--dataset_name", "our radiographs") == 0
        (said,) = re.findall(r"Next run: python train_pretrain.py (.*)$", caplog.text, re.MULTILINE)
        assert "--dataset_name 'our radiographs'" in said
        train_pretrain.main([*shlex.split(said), *words(SMALL)])
        assert Path("outputs/run/model.safetensors").is_file()

    def test_copies_across_splits_are_told_before_training_refuses_them(self, options, tmp_path, monkeypatch, caplog):
        monkeypatch.chdir(tmp_path)
        copied = tmp_path / "pairs.csv"
        lines = options["train_file"].read_text().splitlines()
        images = [options["train_file"].parent / line.partition(",")[0] for line in lines[1:]]
        rows = [f"{images[row % 12]},{line.partition(',')[2]}" for row, line in enumerate(lines[1:])]
        copied.write_text("\n".join([lines[0], *rows]) + "\n")
        options["train_file"] = copied
        assert build(options) == 0
        assert "Training on this cache will stop" in caplog.text
        with pytest.raises(ValueError, match="several splits as byte copies"):
            train(Path("outputs/run"), options)
        with caplog.at_level("INFO"):
            assert build(options, "--duplicates", "drop") == 0
        assert "--duplicates drop --output_dir" in caplog.text


class TestPlace:
    def cache(self, folder: Path) -> Path:
        (folder / f"pairs-{'0' * 16}").mkdir(parents=True)
        return folder

    def test_it_lies_beside_the_output_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert place_of_cache("outputs/run") == place_of_cache("outputs/other") == Path("outputs/embeddings")
        assert place_of_cache() == Path("outputs/embeddings")
        assert place_of_cache("run") == Path("embeddings")
        assert place_of_cache(tmp_path / "run") == tmp_path / "embeddings"
        assert not list(tmp_path.iterdir())

    def test_what_is_named_wins(self, tmp_path, monkeypatch):
        self.cache(tmp_path / "run" / "embeddings")
        monkeypatch.setenv(CACHE_DIR, str(tmp_path / "all"))
        assert place_of_cache(tmp_path / "run", "named") == Path("named")
        assert place_of_cache(tmp_path / "run") == place_of_cache() == tmp_path / "all"

    def test_in_private_mode_it_is_apart_from_those_of_others(self, tmp_path, monkeypatch):
        with private_mode(b"k" * 32):
            assert place_of_cache("outputs/run") == place_of_cache() == Path("outputs/private-embeddings")
            assert place_of_cache("outputs/run", "named") == Path("named")
            monkeypatch.setenv(CACHE_DIR, str(tmp_path / "all"))
            assert place_of_cache("outputs/run") == tmp_path / "private-all"

    def test_that_of_an_earlier_run_is_used_where_it_lies(self, tmp_path):
        (tmp_path / "run" / "embeddings").mkdir(parents=True)
        assert place_of_cache(tmp_path / "run") == tmp_path / "embeddings"
        self.cache(tmp_path / "run" / "embeddings")
        assert place_of_cache(tmp_path / "run") == tmp_path / "run" / "embeddings"

    @pytest.mark.parametrize("case", ["file", "foreign", "itself"])
    def test_where_it_does_not_fit_it_lies_inside(self, case, tmp_path, caplog):
        run = tmp_path / ("embeddings" if case == "itself" else "run")
        if case == "file":
            (tmp_path / "embeddings").write_text("word vectors")
        if case == "foreign":
            (tmp_path / "embeddings").mkdir()
            (tmp_path / "embeddings" / "glove.txt").write_text("word vectors")
        assert place_of_cache(run) == run / "embeddings"
        assert ("kept in the output folder" in caplog.text) == (case != "itself")

    def test_a_folder_that_cannot_be_written_is_left_alone(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        assert place_of_cache(tmp_path / "run") == tmp_path / "run" / "embeddings"
        assert "cannot be made. Name a folder with --cache_dir" in caplog.text

    def test_what_a_refused_build_left_is_no_foreign_file(self, tmp_path):
        (tmp_path / "embeddings").mkdir()
        for name in ("excluded.csv", "towers.json", ".build.lock"):
            (tmp_path / "embeddings" / name).write_text("")
        assert place_of_cache(tmp_path / "run") == tmp_path / "embeddings"


class TestDryRun:
    def test_the_arithmetic_is_that_of_known_numbers(self):
        # DINOv2-B at 224 pixels: 768 wide, a class token and 16 x 16 others; the pairs of the paper.
        for side, gigabytes in ((16, 109), (7, 21), (4, 7)):
            column = Column("image_tokens", (1 + side * side, 768), "float16")
            assert round(column_bytes(column, 277_110) / 1e9) == gigabytes
        quantized = Column("image_tokens", (257, 768), "int8")
        assert column_bytes(quantized, 277_110) == 277_110 * 257 * (768 + 4)
        assert column_bytes(Column("text_tokens", (None, 768), "float16"), 10, 70.5) == 705 * 768 * 2 + 11 * 8

    @pytest.mark.parametrize(
        "kept",
        [
            {"image_tokens": "all", "text_tokens": True, "words": True, "regions": "2x2", "shallow": [1]},
            {"image_tokens": "2", "views": 2, "text_attention": True, "sentences": True, "embedding_dtype": "int8"},
        ],
    )
    def test_its_bytes_are_those_of_the_build(self, options, kept, tmp_path, capsys):
        given = options | kept | {"cache_dir": tmp_path / "cache"}
        flags = [word for name, value in given.items() if value is True for word in (f"--{name}",)]
        given = {name: value for name, value in given.items() if value is not True}
        assert build(given, *flags, "--dry_run") == 0
        assert not (tmp_path / "cache").exists()
        (said,) = re.findall(r"as asked for, in \w+: ([\d.]+) MB", capsys.readouterr().out)
        assert build(given, *flags) == 0
        files = list((tmp_path / "cache").glob("[it]*-*/*.arrow"))
        written = sum(path.stat().st_size for path in files)
        # What the files have beside their rows is their headers.
        assert 0 <= written / 1e6 - float(said) + 0.01 < 0.01 + 0.003 * len(files)

    def test_each_choice_has_its_line_and_a_full_disk_is_said(self, options, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000))
        assert build(options, "--cache_dir", str(tmp_path / "cache"), "--dry_run", "--image_tokens", "all") == 0
        said = capsys.readouterr().out
        assert "What could be kept of 24 images and 24 texts, measured on cpu" in said
        for name in ("pooled vectors", "+ image tokens, all, ", "+ each augmented view, pooled", "+ text tokens, "):
            (line,) = [line for line in said.splitlines() if line.strip().startswith(name)]
            assert line.endswith("more than is free")
        assert said.strip().endswith("The disk has 0.00 MB free: TOO LITTLE")

    def test_spans_are_counted_in_rows_that_are_kept(self, tmp_path, tiny_bert):
        texts = datasets.Dataset.from_dict({"text": ["One two. Three.", "", " ", "Four five six. Seven."]})
        tower = load_text_tower(str(tiny_bert))
        kept = {"words": True, "sentences": True}
        measured = estimate_cache(texts, None, tower, tmp_path / "cache", images={}, texts=kept, device="cpu").texts
        cache = build_cache(texts, None, tower, tmp_path / "cache", max_fault_fraction=1.0, **kept)
        batch = cache.with_columns("words", "sentences")[:]
        for name in kept:
            spans = int((batch[name][..., 0] >= 0).sum())
            assert measured.elements[name] == spans / len(cache), name

    def test_faults_of_the_sample_are_said_once_and_nothing_else_of_it(self, options, broken, tmp_path, caplog, capfd):
        given = {**options, "train_file": broken, "cache_dir": tmp_path / "new/cache", "max_text_length": 4}
        with caplog.at_level("INFO"):
            assert build(given, "--dry_run", "--words") == 0
        said = [record.getMessage() for record in caplog.records]
        assert [one for one in said if "cannot be embedded" in one] == [
            "4 of the 24 sampled rows cannot be embedded by the vision tower: 4 x image file is missing"
        ]
        assert "excluded" not in caplog.text
        assert "were cut" not in caplog.text
        assert logging.getLogger("adaptor_hf.embeddings").level == logging.NOTSET
        # All images are gone: no list is named that is not there.
        gone = tmp_path / "gone.csv"
        gone.write_text(re.sub(r"^[^,]*/", "gone", broken.read_text(), flags=re.MULTILINE))
        assert build({**given, "train_file": gone}, "--dry_run") == 1
        assert "rows are excluded: there is nothing to cache" in capfd.readouterr().err

    def test_the_sample_lies_hidden_beside_the_cache_and_goes(self, options, tmp_path, monkeypatch):
        seen = []

        def watched(*args, cache_dir, **more):
            seen.append((cache_dir.parent, stat.S_IMODE(cache_dir.stat().st_mode), cache_dir.name[0]))
            return build_cache(*args, cache_dir=cache_dir, **more)

        monkeypatch.setattr("adaptor_hf.embeddings.estimate.build_cache", watched)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        for name in ("temporary", "new"):
            (tmp_path / name).mkdir()
        (tmp_path / "file").touch()
        for place, beside, start in (
            ("new/cache", "new", "--dry_run"), ("not/there/cache", ".", "--dry_run"),
            ("file/cache", "temporary", "--dry_run"), ("new/cache", None, "--rebuild"),
        ):  # fmt: skip
            with monkeypatch.context() as killed:
                killed.setattr(os, "getpid", lambda: int(ended.stdout))
                lefts = [aside_of(tmp_path / name / _SAMPLE) for name in ("", "temporary")]
            alive = aside_of(tmp_path / _SAMPLE)
            for folder in (*lefts, alive):
                folder.mkdir()
            seen.clear()
            assert build(options, "--cache_dir", str(tmp_path / place), start) == 0
            assert set(seen) == ({(tmp_path / beside, 0o700, ".")} if beside else set())
            assert list(tmp_path.rglob("*.partial")) == [alive]
            alive.rmdir()

    def test_what_the_tower_does_not_have_is_said_before_anything_is_embedded(self, options, counted, tmp_path, capsys):
        clear(counted)
        assert build(options, "--cache_dir", str(tmp_path / "cache"), "--dry_run", "--shallow", "99") == 1
        assert "99" in capsys.readouterr().err
        assert counted["read"] == 0


def test_info_says_what_is_kept(options, tmp_path, capsys):
    assert build(options, "--cache_dir", str(tmp_path / "cache"), "--image_tokens", "2", "--text_tokens") == 0
    info = json.loads(capsys.readouterr().out)
    cache = open_cache(tmp_path / "cache")
    pooled, columns = info["pooled"]["images"], info["columns"]
    assert (pooled["version"], pooled["rows"], pooled["dtype"]) == (3, 24, "float16")
    assert pooled["width"] == cache.vision_spec["hidden_size"]
    assert columns["image_tokens"]["shape"] == list(cache.stored_columns["image_tokens"].shape)
    assert columns["text_tokens"]["shape"][0] is None
    (file,) = (tmp_path / "cache").glob("images-*/image_tokens-*.arrow")
    assert columns["image_tokens"]["megabytes"] == round(file.stat().st_size / 1e6, 1)
