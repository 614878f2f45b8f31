"""Predictions that are killed, repeated, changed, damaged, private or of many processes; and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from private_commands import CANARY, no_canary
from saved_models import save_head
from test_predict import rows_of, run

from adaptor_hf.prediction import parts as parts_module
from adaptor_hf.prediction import run as run_module
from adaptor_hf.prediction.__main__ import main
from adaptor_hf.prediction.parts import Parts
from adaptor_hf.privacy import mode as private_mode

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(checkpoint, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "classification": save_head("classification", checkpoint, folder / "c", id2label={0: "normal", 1: "effusion"}),
        "segmentation": save_head("segmentation", checkpoint, folder / "s", id2label={0: "background", 1: "lung"}),
    }


@pytest.fixture
def folder(radiographs, tmp_path) -> Path:
    """Six images, that a test may change."""
    return Path(shutil.copytree(radiographs, tmp_path / "images"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts_module, "PART_ROWS", 2)


def command(model: Path, output_dir: Path, **options) -> list[str]:
    given = {"model": model, "output_dir": output_dir, "num_workers": 0} | options
    return [
        word
        for name, value in given.items()
        for word in ((f"--{name}",) if value is True else (f"--{name}", str(value)))
    ]


def files_of(output_dir: Path, but: tuple[str, ...] = ("prediction.json",)) -> dict[str, bytes]:
    found = {
        path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("*") if path.is_file()
    }
    return {name: content for name, content in found.items() if name not in but}


class TestStopped:
    @pytest.mark.parametrize("kind", ["classification", "segmentation"])
    def test_what_is_left_is_computed_and_the_result_is_the_same_to_the_byte(
        self, kind, models, folder, tmp_path, small_parts, monkeypatch
    ):
        run(models[kind], tmp_path / "whole", image_folder=folder)
        write, read = Parts.write, []

        def stop(self, number, lines):
            if number == 1:
                raise KeyboardInterrupt
            write(self, number, lines)

        with monkeypatch.context() as patch:
            patch.setattr(Parts, "write", stop)
            with pytest.raises(KeyboardInterrupt):
                run(models[kind], tmp_path / "out", image_folder=folder)
        assert not (tmp_path / "out/predictions.csv").exists()
        compute = run_module._lines
        monkeypatch.setattr(run_module, "_lines", lambda *words: read.extend(words[3]) or compute(*words))
        run(models[kind], tmp_path / "out", image_folder=folder)
        assert read == [2, 3, 4, 5]
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
        assert len(files_of(tmp_path / "out")) == (8 if kind == "segmentation" else 1)

    def test_a_finished_one_is_not_computed_again_and_a_damaged_part_is(
        self, models, folder, tmp_path, small_parts, monkeypatch, caplog
    ):
        words = command(models["classification"], tmp_path / "out", image_folder=folder)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "write_results", lambda *words: (_ for _ in ()).throw(OSError("full")))
            assert main(words) == 1
        part = tmp_path / "out/.prediction/part-000001.jsonl"
        part.write_text(part.read_text().replace("0.", "0.1", 1))
        read, compute = [], run_module._lines
        monkeypatch.setattr(run_module, "_lines", lambda *words: read.extend(words[3]) or compute(*words))
        assert main(words) == 0
        assert read == [2, 3]
        assert "Part 1 of 3 is damaged" in caplog.text
        run(models["classification"], tmp_path / "whole", image_folder=folder)
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
        read.clear()
        assert main(words) == 0
        assert read == []

    def test_another_size_of_batches_goes_on(self, models, folder, tmp_path, small_parts, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "write_results", lambda *words: (_ for _ in ()).throw(OSError("full")))
            assert main(command(models["classification"], tmp_path / "out", image_folder=folder)) == 1
        assert main(command(models["classification"], tmp_path / "out", image_folder=folder, batch_size=1)) == 0

    def test_a_signal_of_a_scheduler_ends_with_75(self, models, folder, tmp_path, monkeypatch, capsys):
        compute = run_module._lines

        def interrupted(*words):
            os.kill(os.getpid(), signal.SIGTERM)
            return compute(*words)

        monkeypatch.setattr(run_module, "_lines", interrupted)
        assert main(command(models["classification"], tmp_path / "out", image_folder=folder)) == 75
        assert "The same command goes on" in capsys.readouterr().err


class TestChanged:
    def test_other_options_models_and_images_are_refused_by_name(self, models, folder, tmp_path, capsys):
        words = command(models["classification"], tmp_path / "out", image_folder=folder)
        assert main(words) == 0
        before = files_of(tmp_path / "out", but=())

        def refused(*more: str) -> str:
            assert main([*words, *more]) == 1
            assert files_of(tmp_path / "out", but=()) == before
            return capsys.readouterr().err

        assert "made with something else: --threshold. Choose" in refused("--threshold", "0.3")
        assert "something else: --dtype. " in refused("--dtype", "bfloat16")
        assert "something else: the model (" in refused("--model", str(models["segmentation"]))
        (folder / "image_0.jpg").write_bytes((folder / "image_1.jpg").read_bytes())
        assert "something else: the images (" in refused()
        assert main([*words, "--overwrite"]) == 0
        rows = rows_of(tmp_path / "out/predictions.csv")
        assert rows[0]["effusion"] == rows[1]["effusion"]

    def test_an_overwritten_one_leaves_nothing_of_the_old(self, models, folder, tmp_path):
        assert main(command(models["segmentation"], tmp_path / "out", image_folder=folder)) == 0
        assert main(command(models["classification"], tmp_path / "out", image_folder=folder, overwrite=True)) == 0
        assert set(files_of(tmp_path / "out", but=())) == {"predictions.csv", "prediction.json"}

    def test_a_result_that_was_edited_is_named(self, models, folder, tmp_path, capsys):
        words = command(models["classification"], tmp_path / "out", image_folder=folder)
        assert main(words) == 0
        with open(tmp_path / "out/predictions.csv", "a") as file:
            file.write("more\n")
        assert main(words) == 1
        assert "predictions.csv is not the file of prediction.json" in capsys.readouterr().err

    def test_images_that_change_while_they_are_read_are_noticed(self, models, folder, tmp_path, monkeypatch, capsys):
        compute = run_module._lines

        def changing(*words):
            (folder / "image_0.jpg").write_bytes(b"other")
            return compute(*words)

        monkeypatch.setattr(run_module, "_lines", changing)
        assert main(command(models["classification"], tmp_path / "out", image_folder=folder)) == 1
        assert "changed while they were read" in capsys.readouterr().err

    def test_a_changed_tower_is_another_model(self, models, tmp_path, tiny_dinov2):
        from safetensors.torch import load_file, save_file

        from adaptor_hf.data.table_arguments import TableArguments
        from adaptor_hf.prediction.arguments import PredictionArguments
        from adaptor_hf.prediction.models import load_model

        tower = Path(shutil.copytree(tiny_dinov2, tmp_path / "tower"))
        model = Path(shutil.copytree(models["classification"], tmp_path / "model"))
        config = json.loads((model / "config.json").read_text())
        config["vision_tower"]["name_or_path"] = str(tower)
        (model / "config.json").write_text(json.dumps(config))
        arguments = PredictionArguments(model=str(model), image_folder="x", output_dir="y")
        first = load_model(arguments, TableArguments(), "cpu").digest
        weights = load_file(tower / "model.safetensors")
        name = next(name for name in weights if name.endswith("layer.0.mlp.fc1.weight"))
        weights[name] = weights[name] + 1
        save_file(weights, tower / "model.safetensors", {"format": "pt"})
        assert load_model(arguments, TableArguments(), "cpu").digest != first

    def test_the_same_weights_under_another_configuration_are_another_model(self, models, folder, tmp_path, capsys):
        model = Path(shutil.copytree(models["classification"], tmp_path / "model"))
        words = command(model, tmp_path / "out", image_folder=folder)
        assert main(words) == 0
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
        assert main(words) == 1
        assert "something else: the model" in capsys.readouterr().err

    @pytest.mark.parametrize("finished", [True, False])
    def test_a_mask_that_is_gone_or_changed_is_seen(
        self, finished, models, folder, tmp_path, capsys, monkeypatch, small_parts
    ):
        words = command(models["segmentation"], tmp_path / "out", image_folder=folder)
        if not finished:
            monkeypatch.setattr(run_module, "write_results", stopped)
            with pytest.raises(KeyboardInterrupt):
                main(words)
            monkeypatch.undo()
            monkeypatch.setattr(parts_module, "PART_ROWS", 2)
        else:
            assert main(words) == 0
        whole = {path.name: path.read_bytes() for path in (tmp_path / "out" / "masks").iterdir()}
        first, second, *_ = sorted((tmp_path / "out" / "masks").iterdir())
        first.unlink()
        second.write_bytes(b"nothing")
        assert main(words) == (1 if finished else 0)
        if finished:
            assert "a mask is missing, new or changed" in capsys.readouterr().err
        else:
            assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "masks").iterdir()} == whole

    def test_processes_that_list_other_images_or_load_another_model_are_refused(self):
        plan = {"model": "a", "images": "b", "threshold": None}
        run_module._check_same(plan, dict(plan))
        with pytest.raises(ValueError, match="found different things: the images"):
            run_module._check_same(plan, plan | {"images": "c"})

    def test_a_kill_while_an_older_one_is_deleted_leaves_one_that_can_be_deleted(
        self, models, folder, tmp_path, monkeypatch
    ):
        words = command(models["segmentation"], tmp_path / "out", image_folder=folder)
        assert main(words) == 0
        monkeypatch.setattr(shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            main([*words, "--overwrite"])
        monkeypatch.undo()
        assert main([*words, "--overwrite"]) == 0


def stopped(*arguments, **options) -> None:
    raise KeyboardInterrupt


class TestFaults:
    def test_unreadable_images_are_listed_and_the_others_predicted(self, models, folder, tmp_path, caplog):
        (folder / "image_1.jpg").write_bytes((folder / "image_1.jpg").read_bytes()[:200])
        (folder / "image_3.jpg").write_bytes(b"")
        lines = [f"image_{number}.jpg" for number in range(6)] + ["none.jpg", '""']
        (folder / "t.csv").write_text("image,x\n" + "".join(f"{line},1\n" for line in lines))
        words = command(models["classification"], tmp_path / "out", table=folder / "t.csv")
        assert main(words) == 0
        rows = rows_of(tmp_path / "out/predictions.csv")
        assert [row["image_id"] for row in rows] == [f"image_{number}.jpg" for number in (0, 2, 4, 5)]
        faults = rows_of(tmp_path / "out/faults.csv")
        assert [(row["source_row"], row["file"]) for row in faults] == [
            ("1", "image_1.jpg"), ("3", "image_3.jpg"), ("6", "none.jpg"), ("7", ""),
        ]  # fmt: skip
        assert [row["reason"].partition(":")[0] for row in faults] == [
            *["image cannot be decoded"] * 2, "image file cannot be read", "image cannot be decoded",
        ]  # fmt: skip
        assert "4 of 8 images are not predicted" in caplog.text

    def test_without_any_readable_image_the_status_is_one(self, models, tmp_path, capsys):
        (tmp_path / "images").mkdir()
        (tmp_path / "images/a.png").write_bytes(b"none")
        assert main(command(models["classification"], tmp_path / "out", image_folder=tmp_path / "images")) == 1
        assert "none of the images can be read" in capsys.readouterr().err
        assert len(rows_of(tmp_path / "out/faults.csv")) == 1

    def test_too_little_memory_says_what_to_do(self, models, folder, tmp_path, monkeypatch, capsys):
        def full(*words):
            raise torch.OutOfMemoryError("CUDA out of memory")

        words = command(models["classification"], tmp_path / "out", image_folder=folder)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "score", full)
            assert main(words) == 1
        assert "pass a smaller --batch_size" in capsys.readouterr().err
        assert main([*words, "--batch_size", "1"]) == 0

    def test_numbers_that_are_none_are_no_scores(self, models, folder, tmp_path, capsys):
        from safetensors.torch import load_file, save_file

        model = Path(shutil.copytree(models["classification"], tmp_path / "model"))
        weights = load_file(model / "model.safetensors")
        weights["classifier.1.bias"] = weights["classifier.1.bias"] * float("nan")
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        assert main(command(model, tmp_path / "out", image_folder=folder)) == 1
        assert "NaN or infinity" in capsys.readouterr().err
        del weights["classifier.1.bias"]
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        assert main(command(model, tmp_path / "out", image_folder=folder)) == 1
        assert "1 of its weights are missing" in capsys.readouterr().err


class TestRefused:
    def test_what_is_no_model_no_source_or_no_new_folder(
        self, models, checkpoint, tiny_dinov2, folder, tmp_path, capsys
    ):
        (tmp_path / "empty").mkdir()
        (tmp_path / "t.csv").write_text("image\na.png\n")
        (tmp_path / "run/model").mkdir(parents=True)
        shutil.copy(models["classification"] / "config.json", tmp_path / "run/model")
        good, images = models["classification"], {"image_folder": folder}

        def said(model: Path, output_dir: Path = tmp_path / "out", **options) -> str:
            assert main(command(model, output_dir, **options)) == 1
            assert not (tmp_path / "out/predictions.csv").exists()
            return capsys.readouterr().err

        assert "a pre-trained AdaptorModel: it has no classes" in said(checkpoint, **images)
        assert "'Dinov2Model', which predicts no classes" in said(tiny_dinov2, **images)
        assert "is no model: it has no config.json" in said(tmp_path / "empty", **images)
        assert f"pass --model {tmp_path / 'run/model'}" in said(tmp_path / "run", **images)
        assert "has classes of its own, 2" in said(good, classes="edema", **images)
        assert "no image in this folder" in said(good, image_folder=tmp_path / "empty")
        assert "there is nothing of this name" in said(good, image_folder=tmp_path / "none")
        assert "got none" in said(good)
        assert "got --table and --image_folder" in said(good, table=folder / "t.csv", **images)
        assert "is a folder: pass it as --image_folder" in said(good, table=folder)
        assert "is a file, expected a folder: pass a table as --table" in said(
            good, image_folder=folder / "image_0.jpg"
        )
        assert "was not written by save_to_disk" in said(good, dataset_dir=folder)
        assert "no column 'path'" in said(good, table=tmp_path / "t.csv", image_column="path")
        assert "that no prediction made, such as those of another run" in said(good, checkpoint, **images)
        assert "--template needs one {}" in said(checkpoint, classes="edema", template="x", **images)

    def test_a_damaged_model_is_refused(self, models, folder, tmp_path, capsys):
        from adaptor_hf.file_records import write_manifest
        from adaptor_hf.files import file_sha256

        run_folder = tmp_path / "run"
        model = Path(shutil.copytree(models["classification"], run_folder / "model"))
        files = {f"model/{path.name}": file_sha256(path) for path in model.iterdir()}
        inputs = {"table": None, "cache": {"folder": None, "files": {}}, "models": []}
        write_manifest(run_folder, {"script": "train_downstream", "inputs": inputs, "splits": {}, "files": files})
        data = bytearray((model / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (model / "model.safetensors").write_bytes(data)
        assert main(command(model, tmp_path / "out", image_folder=folder)) == 1
        assert "damaged or was changed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_private_one_writes_and_says_no_id_and_no_file_name(kind, models, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.setattr(private_mode, "_keep_data_sets_aside", lambda: None)
    folder = tmp_path / f"ward {CANARY}"
    folder.mkdir()
    for number in range(3):
        Image.new("L", (40, 30 + number), 40 * number).save(folder / f"{CANARY}-{number}.png")
    (folder / f"{CANARY}-9.png").write_bytes(f"{CANARY}".encode())
    table = folder / f"{CANARY}.csv"
    names = [*(f"{CANARY}-{number}.png" for number in (0, 1, 2, 9)), f"{CANARY}-none.png"]
    table.write_text(f"{CANARY},key\n" + "".join(f"{name},{CANARY}{number}\n" for number, name in enumerate(names)))
    words = command(models[kind], tmp_path / "out", table=table, image_column=CANARY, id_column="key")
    capfd.readouterr()
    try:
        assert main([*words, "--private", "--key_file", str(tmp_path / f"{CANARY}.key")]) == 0
    finally:
        private_mode._set_key(None)
        private_mode.stop_filter()
    said = capfd.readouterr()
    no_canary(said.out + said.err, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if CANARY.lower() in path.name.lower()]
    rows = rows_of(tmp_path / "out/predictions.csv")
    assert len({row["image_id"] for row in rows}) == 3
    assert len(rows_of(tmp_path / "out/faults.csv")) == 2
    assert all(path.stat().st_mode & 0o77 == 0 for path in (tmp_path / "out").rglob("*") if path.is_file())
    if kind == "segmentation":
        assert sorted(path.name for path in (tmp_path / "out/masks").iterdir()) == sorted(
            f"{int(row['source_row']):06d}-{row['image_id']}.png" for row in rows
        )


def started(words: list[str], part_rows: int, **environment: str) -> subprocess.Popen:
    code = (
        "import sys; from adaptor_hf.prediction import parts; parts.PART_ROWS = int(sys.argv.pop(1));"
        "from adaptor_hf.prediction.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(part_rows), *words], cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A folder of 120 images."""
    folder = tmp_path_factory.mktemp("many")
    generator = torch.Generator().manual_seed(0)
    for number in range(120):
        pixels = torch.randint(0, 255, (40, 36 + number % 5), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_killed_process_loses_one_part_and_two_processes_give_the_same(kind, models, many, tmp_path):
    run(models[kind], tmp_path / "whole", image_folder=many)
    words = command(models[kind], tmp_path / "out", image_folder=many, batch_size=4)
    kills, parts = 0, tmp_path / "out/.prediction"
    for wanted in (2, 6, 11):
        process = started(words, 8)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(parts.glob("part-*.jsonl"))) >= wanted:
                process.kill()
                kills += 1
                break
            time.sleep(0.002)
        process.communicate()
    assert kills == 3
    done = len(list(parts.glob("part-*.jsonl")))
    assert 11 <= done <= 15
    process = started(words, 8)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29631",
              "-m", "adaptor_hf.prediction", *command(models[kind], tmp_path / "two", image_folder=many)]  # fmt: skip
    done = subprocess.run(
        launch, cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_of(tmp_path / "two") == files_of(tmp_path / "whole")
