"""train_pretrain.py from a table of files to a checkpoint and a card, and what it answers to wrong input."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pretrain_runs import ROWS, SMALL, launch, main, make_options, make_rows, planned_pairs, words
from transformers import AutoModel, AutoProcessor

import train_pretrain
from adaptor_hf.configs import accelerate_config
from adaptor_hf.verify import verification


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    return make_rows(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def options(rows, tiny_dinov2, tiny_bert, tmp_path_factory) -> dict:
    return make_options(rows, tiny_dinov2, tiny_bert, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A whole run in its own process, with controls, TensorBoard and output into a pipe."""
    output = tmp_path_factory.mktemp("finished") / "model"
    changes = {"output_dir": output, "controls": True, "report_to": "tensorboard", "dataset_name": "toy pairs"}
    return output, launch([sys.executable, "train_pretrain.py", *words({**options, **changes})])


class TestFinishedRun:
    def test_it_exits_with_0_and_says_what_it_did(self, finished):
        _, process = finished
        assert process.returncode == 0, process.stderr
        said = process.stderr
        assert re.search(r"Parameters: [\d,]+ trainable, [\d,]+ of them receive a gradient", said)
        assert sum(planned_pairs(said)[-1]) == ROWS
        assert "Left out: 0 rows without text and 0 faulty rows\n" in said
        assert re.search(r"Texts: \d+ distinct in training; [\d.]+% of rows share their text", said)
        assert re.search(r"  steps: \d+ \(2 epochs\), each of 8 pairs, peak learning rate 0.001\n", said)
        # What the plan said, and what came so, is not said again.
        assert not re.search(r"^(Pairs|Steps|Batch): ", said, re.M)
        assert re.search(r"Cache: .*embeddings.pairs-", said)
        assert "Retrieval on the test split" in process.stdout

    def test_its_last_words_say_where_the_model_the_curves_and_the_embeddings_are(self, finished, options, tmp_path):
        output, process = finished
        *_, kept, model, curves, embeddings, following = process.stdout.strip().splitlines()
        state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
        best = next(entry for entry in state["log_history"] if entry.get("eval_mean_recall") == state["best_metric"])
        found = f"Kept: epoch {best['epoch']:g} of 2, validation mean recall {state['best_metric']:.3f} "
        pairs = json.loads((output / "run.json").read_text(encoding="utf-8"))["inputs"]["rows"]["validation"]
        # Each patient of the table has two rows.
        chosen_on = f"on {pairs} pairs of {pairs // 2} patient{'s' * (pairs > 2)}: few"
        assert re.fullmatch(re.escape(found) + r"\(chance 0\.\d{3}\) " + re.escape(chosen_on), kept), kept
        assert (model, curves) == (f"Model: {output}", f"Curves: {output / 'training_curves.png'}")
        with Image.open(output / "training_curves.png") as picture:
            assert picture.size[0] > 500
            assert len(picture.convert("RGB").getcolors(2**24)) > 20
        # The command as it stands there goes on without table and towers.
        command = re.fullmatch(
            r"Next run: python train_pretrain.py (--recipe small --cache .* --output_dir .*-2)", following
        )
        given = shlex.split(command[1])
        assert embeddings == f"Embeddings: {given[3]}"
        parameters = {name: options[name] for name in ("aligner", "global_batch_size", "learning_rate", "use_cpu")}
        again = {"output_dir": tmp_path / "again", "max_steps": 1, **parameters}
        train_pretrain.main([*given, *words(again)])
        assert (tmp_path / "again" / "model.safetensors").is_file()

    def test_it_verifies_with_its_controls_processor_and_logs(self, finished):
        found = verification(finished[0])
        assert (found.differences, found.unchecked) == ([], [])
        listed = json.loads((finished[0] / "manifest.json").read_text(encoding="utf-8"))["files"]
        assert {"README.md", "processor_config.json", "tokenizer.json", "modeling_adaptor.py"} <= listed.keys()
        assert "controls/shuffled/model.safetensors" in listed

    def test_output_into_a_pipe_has_no_control_characters_and_no_bar_of_the_trainer(self, finished):
        _, process = finished
        assert "\x1b" not in process.stdout + process.stderr
        # Carriage returns of a bar come as new lines here.
        assert "%|" not in process.stdout + process.stderr
        lines = (process.stdout + process.stderr).splitlines()
        repeated = {line for line in lines if line.strip() and lines.count(line) > 1}
        assert not repeated
        assert len(lines) < 60
        assert "it/s" not in process.stderr
        assert "Traceback" not in process.stderr

    def test_the_folder_loads_with_auto_classes_and_runs_on_images_and_text(self, finished, rows):
        model = AutoModel.from_pretrained(finished[0]).eval()
        processor = AutoProcessor.from_pretrained(finished[0])
        image = Image.open(rows[0]["path"])
        with torch.no_grad():
            output = model(**processor(images=image, text=["effusion", "no edema"], return_tensors="pt", padding=True))
        assert output.logits_per_image.shape == (1, 2)
        assert output.logits_per_image.isfinite().all()

    def test_the_card_has_metadata_numbers_and_no_licence_by_default(self, finished):
        card = (finished[0] / "README.md").read_text(encoding="utf-8")
        metadata = yaml.safe_load(card.split("---")[1])
        assert "license" not in metadata
        assert "base_model" not in metadata
        result = metadata["model-index"][0]["results"][0]
        assert result["dataset"] == {
            "name": "toy pairs",
            "type": "toy-pairs",
            "split": "test",
            "args": {"split_hash": re.search(r"Split hash `([0-9a-f]{12})`", card)[1]},
        }
        metrics = {metric["type"]: metric for metric in result["metrics"]}
        assert len(metrics) == 13
        assert all(metric["args"]["chance"] > 0 for metric in metrics.values())
        assert "| metric | value | 95 % interval | chance | n |" in card
        # Three patients are held out.
        assert not any("interval_95" in metric["args"] for metric in metrics.values())
        assert "| n/a |" in card
        assert "| learning_rate | 0.001 |" in card
        assert "| lr_scheduler_type | linear |" in card

    def test_controls_are_printed_and_in_the_card(self, finished):
        card = (finished[0] / "README.md").read_text(encoding="utf-8")
        for text in (finished[1].stdout, card):
            variants = re.findall(r"^\| ([A-Za-z,: ]+) \| \d\.\d{3} ", text, flags=re.MULTILINE)
            assert variants == [
                "Adaptor, this run",
                "Adaptor",
                "two linear projections",
                "Adaptor, shuffled pairs",
                "Adaptor, untrained",
                "trivial: chance",
            ]

    def test_controls_are_kept_beside_the_checkpoint_where_the_evaluation_finds_them(
        self, finished, options, tmp_path, caplog
    ):
        import train_downstream
        from adaptor_hf.evaluation import read_results
        from adaptor_hf.hub.push import PUSHED_FILES

        saved = {path.name for path in (finished[0] / "controls").iterdir()}
        assert saved == {"projections", "shuffled"}
        assert AutoModel.from_pretrained(finished[0] / "controls" / "projections").config.num_hidden_layers == 0
        arguments = {name: options[name] for name in ("image_column", "text_column", "patient_column")}
        arguments |= {"task": "retrieval", "model": finished[0], "table": options["train_file"], "device": "cpu"}
        arguments |= {"output_dir": tmp_path, "num_resamples": 50, "cache_dir": options["cache_dir"]}
        with caplog.at_level("INFO"):
            train_downstream.main(words(arguments))
        assert "Control models found beside the checkpoint: two linear projections, Adaptor, shuffled" in caplog.text
        found = {line["module"] for line in read_results(tmp_path / "runs").lines}
        assert found == {"adaptor", "untrained", "projections", "shuffled"}
        assert not any("controls" in name for name in PUSHED_FILES)
        self.results_enter_the_card(finished[0], tmp_path)

    @staticmethod
    def results_enter_the_card(model, results):
        from adaptor_hf.evaluation.__main__ import main as evaluation

        copy = results / "copy"
        copy.mkdir()
        for name in ("README.md", "config.json", "model.safetensors"):
            shutil.copy(model / name, copy / name)
        before = (copy / "README.md").read_text(encoding="utf-8")
        for _ in range(2):
            assert evaluation(["card", str(results / "runs"), "--model", str(copy)]) == 0
        card = (copy / "README.md").read_text(encoding="utf-8")
        assert card.partition("\n---\n")[2].strip() == before.partition("\n---\n")[2].strip()
        entries = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
        old, new = (entry for entry in entries if entry["task"]["type"] == "image-text-retrieval")
        assert (old["dataset"]["name"], new["dataset"]["name"]) == ("toy pairs", "pairs")
        assert new["dataset"]["args"]["module"] == "adaptor", "results of controls stay out"
        assert len({metric["type"] for metric in new["metrics"]}) == len(new["metrics"]) > 7
        assert str(results) not in card
        other = results / "runs"
        assert evaluation(["card", str(other), "--model", str(model / "controls" / "shuffled")]) == 1

    def test_best_and_last_checkpoint_and_tensorboard_events_are_there(self, finished):
        names = {path.name for path in finished[0].glob("checkpoint-*")}
        assert 1 <= len(names) <= 2
        assert json.loads((finished[0] / "trainer_state.json").read_text())["best_model_checkpoint"]
        assert list(finished[0].rglob("events.out.tfevents.*"))

    def test_no_report_path_or_patient_leaves_the_cache(self, finished, rows):
        written = [path for path in finished[0].rglob("*") if path.is_file() and path.suffix != ".py"]
        assert len(written) > 15
        for path in written:
            content = path.read_bytes()
            for canary in (b"subject-", b"small effusion", rows[0]["path"].encode()):
                assert canary not in content, path
        said = finished[1].stdout + finished[1].stderr
        assert "subject-" not in said
        assert "small effusion" not in said


def test_a_second_run_reads_no_image_and_a_fraction_has_fewer_rows(options, finished, rows, tmp_path, capsys, caplog):
    assert finished[1].returncode == 0
    counts, kept = {}, {}
    with caplog.at_level("INFO"):
        for fraction in (1.0, 0.3):
            main(tmp_path / str(fraction), options, train_fraction=fraction, num_train_epochs=1)
            counts[fraction] = planned_pairs(caplog.text)[-1]
            kept[fraction] = (tmp_path / str(fraction) / "README.md").read_text(encoding="utf-8")
    assert "images:" not in capsys.readouterr().err  # the progress bar of reading images
    assert counts[1.0][1:] == counts[0.3][1:]
    assert 0.15 * counts[1.0][0] < counts[0.3][0] < 0.45 * counts[1.0][0]
    assert f"{counts[0.3][0]} train" in kept[0.3]


def test_the_first_run_shows_its_progress(options, tmp_path, capsys):
    main(tmp_path, options, cache_dir=tmp_path / "embeddings", num_train_epochs=1)
    assert "images: 40 of 40 rows" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_recipe_is_the_same_as_options_and_later_options_win(options, finished, kind, tmp_path, caplog):
    recipe = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    recipe |= {"output_dir": str(tmp_path / "unused"), "learning_rate": 0.002, "num_train_epochs": 9, "filter": []}
    path = tmp_path / f"recipe.{kind}"
    path.write_text(yaml.safe_dump(recipe) if kind == "yaml" else json.dumps(recipe), encoding="utf-8")
    with caplog.at_level("INFO"):
        train_pretrain.main([str(path), "--output_dir", str(tmp_path / "model"), "--num_train_epochs", "1"])
    assert re.search(r"  steps: \d+ \(1 epoch\), each of 8 pairs, peak learning rate 0.002\n", caplog.text)
    assert not (tmp_path / "unused").exists()
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_recipe_spells_numbers_and_lists_as_yaml_does(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "train_file: pairs.csv\nlearning_rate: 5e-4\ncontrols: true\nlearning_rate_grid: [1e-4, 3e-4]\n"
        "filter: view=AP\nobjective: {max_logit_scale: null, logit_scale_init_value: 2}\n"
        "auto_mixed_precision: false\nresume_from_checkpoint: true\n"
    )
    data, model, run, training = train_pretrain.parse_arguments([str(recipe), "--output_dir", str(tmp_path)])
    assert training.learning_rate == 5e-4
    assert run.learning_rate_grid == [1e-4, 3e-4]
    assert data.filter == ["view=AP"]
    assert (model.objective.max_logit_scale, model.objective.logit_scale_init_value) == (None, 2.0)
    assert training.auto_mixed_precision is False
    assert training.resume_from_checkpoint is True


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.yaml",
            "train_file: x\nlerning_rate: 1\nconfig: 2\n",
            "Unknown keys in the recipe: 'config', 'lerning_rate'",
        ),
        ("a.yaml", "- a\n- b\n", "must hold a mapping"),
        ("a.yaml", "a: [1\nb: 2", "a.yaml is not valid YAML: .*line 2"),
        ("a.json", '{"a": 1,}', "a.json is not valid JSON: .*line 1"),
    ],
)
def test_a_wrong_recipe_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        train_pretrain.main([str(tmp_path / name)])


@pytest.mark.parametrize("how", ["true", "path"])
def test_resuming_goes_on_where_the_run_stopped(options, finished, how, tmp_path):
    main(tmp_path, options, num_train_epochs=1)
    first = json.loads((tmp_path / "trainer_state.json").read_text())
    checkpoint = tmp_path / f"checkpoint-{first['global_step']}"
    main(tmp_path, options, num_train_epochs=3, resume_from_checkpoint="true" if how == "true" else checkpoint)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 3 * first["global_step"]
    assert [entry["epoch"] for entry in state["log_history"] if "eval_loss" in entry] == [1, 2, 3]


def test_the_run_that_embeds_is_the_run_that_finds_its_embeddings(options, tmp_path):
    """The same command twice: loading timm's tower draws random numbers, and the weights are the same all the same."""
    for name in ("embeds", "reuses"):
        assert (tmp_path / "embeddings").is_dir() == (name == "reuses")
        main(tmp_path / name, options, vision_tower="lite0", num_train_epochs=1, cache_dir=tmp_path / "embeddings")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("embeds", "reuses"))
    assert first == second


def test_a_dry_run_says_hours_disk_and_memory_and_writes_nothing(options, tmp_path, capsys):
    main(tmp_path / "model", options, dry_run=True, cache_dir=tmp_path / "embeddings")
    said = capsys.readouterr().out
    assert re.search(r"Dry run on CPU, 32 rows", said)
    assert re.search(r"extraction: [\d.]+ h \([\d.]+ images/s, [\d.]+ texts/s in one process\)", said)
    assert re.search(r"[\d.]+ GB of disk", said)
    assert re.search(r"training: [\d.]+ h \(\d+ steps of 8 pairs", said)
    assert re.search(r"[\d.]+ GB of RAM", said)
    assert not list(tmp_path.iterdir())


def test_a_ready_cache_is_enough_without_towers_and_table(options, tiny_dinov2, tiny_bert, tmp_path, caplog):
    towers = {}
    for name, folder in (("vision_tower", tiny_dinov2), ("text_tower", tiny_bert)):
        towers[name] = tmp_path / name
        shutil.copytree(folder, towers[name])
    main(tmp_path / "built", options, **towers, num_train_epochs=1, cache_dir=tmp_path / "embeddings")
    assert AutoProcessor.from_pretrained(tmp_path / "built")
    for folder in towers.values():
        shutil.rmtree(folder)
    of_a_run = ("global_batch_size", "learning_rate", "use_cpu", *SMALL)
    main(tmp_path / "model", {name: options[name] for name in of_a_run}, cache=tmp_path / "embeddings")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "gets no processor" in caplog.text


def test_the_push_comes_once_and_after_the_card(options, tmp_path, monkeypatch, capsys):
    cards = []

    def push(self, **kwargs):
        cards.append((Path(self.args.output_dir) / "README.md").is_file())
        return "address of the commit"

    monkeypatch.setattr("adaptor_hf.training.AdaptorTrainer.push_to_hub", push)
    main(tmp_path, options, push_to_hub=True, num_train_epochs=1)
    assert cards == [True]
    assert "Pushed: address of the commit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_column": "raport"}, ValueError, r"no column 'raport' .*Did you mean 'report'\? Columns: 'path', 'rep"),
        ({"train_file": "nowhere.csv"}, OSError, "nowhere.csv"),
        ({"vision_tower": "owner/absent"}, OSError, "owner/absent"),
        ({"text_tower": "absent-folder"}, OSError, "absent-folder"),
        ({"text_tower": None}, ValueError, "--train_file needs --text_tower"),
        ({"train_file": None}, ValueError, "Give --train_file .* or --cache"),
        ({"cache": "x"}, ValueError, "Give --train_file .* or --cache"),
        ({"train_file": None, "cache": "x"}, ValueError, "--cache is trained on as it is: .*image_column"),
        ({"validation_fraction": 1.5}, ValueError, "validation_fraction and test_fraction are shares"),
        ({"train_fraction": 0}, ValueError, r"in \(0, 1\], got 0.0. For 30 % pass 0.3"),
        ({"train_fraction": 30}, ValueError, r"in \(0, 1\], got 30"),
        ({"filter": "subject"}, ValueError, "not of the form column=value"),
        ({"filter": "subject=none"}, ValueError, "none of its 40 rows matches"),
        ({"objective": '{"positives": "image"}'}, ValueError, "objective: positives must be one of text, study"),
        ({"per_device_train_batch_size": 1}, ValueError, "at least 2"),
        ({"learning_rate_grid": [1e-3, 1e-4]}, ValueError, "give both"),
        ({"nonsense": 1}, ValueError, "nonsense"),
        ({"resume_from_checkpoint": "checkpoint-9"}, ValueError, "checkpoint-9"),
        ({"resume_from_checkpoint": "true"}, ValueError, "No valid checkpoint found"),
        (
            {"aligner": '{"hidden_size": 48, "num_attention_heads": 5}'},
            ValueError,
            r"^hidden_size \(48\) must be",
        ),
        ({"extraction_batch_size": 0}, ValueError, "at least 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_input_raises_an_error_that_names_it(options, finished, changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        main(tmp_path / "model", options, **changes)
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("changes", [{"vision_tower": "lite0"}, {"dry_run": True}])
def test_a_cache_refuses_options_that_it_cannot_follow(changes, tmp_path):
    with pytest.raises(ValueError, match=r"--cache brings its towers|--dry_run measures towers"):
        train_pretrain.main(words({"cache": tmp_path, "output_dir": tmp_path / "model", **changes}))


def test_an_error_is_one_line_and_exit_status_1():
    process = launch([sys.executable, "train_pretrain.py"])
    assert process.returncode == 1
    assert process.stdout == ""
    assert re.fullmatch(r"error: Give --train_file .* or --cache .*\n", process.stderr)


@pytest.mark.slow
def test_two_processes_train_together_with_controls(options, finished, tmp_path):
    """As the launch config two_cpu says: gloo, one batch over both ranks, one writer."""
    output = tmp_path / "model"
    changes = {"output_dir": output, "use_cpu": None, "controls": True, "num_train_epochs": 1}
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", str(accelerate_config("two_cpu"))]
    process = launch(
        [sys.executable, *accelerate, "-m", "train_pretrain", *words({**options, **changes})],
        ACCELERATE_USE_CPU="true",
    )
    assert process.returncode == 0, process.stderr
    assert "(1 epoch), each of 8 pairs (2 processes x 4), peak learning rate 0.001\n" in process.stderr
    assert process.stderr.count("  steps: ") == process.stderr.count("Parameters: ") == 1
    assert process.stdout.count("Retrieval on the test split") == 1
    assert process.stdout.count(f"Model: {output}") == 1
    assert "| world_size | 2 |" in (output / "README.md").read_text(encoding="utf-8")
    assert AutoModel.from_pretrained(output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptor_hf.training.script_arguments.AdaptorTrainingArguments.world_size", 2)
        with pytest.raises(ValueError, match="measures one process"):
            main(tmp_path / "dry", options, dry_run=True)
