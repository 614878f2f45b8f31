"""train_pretrain.py with towers that train: from a table to trained towers, beside the same Adaptor on frozen ones."""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_runs import SMALL, main, make_options, make_rows, words, write_table
from private_commands import CANARY, no_canary, plant_table
from safetensors.torch import load_file
from script_runs import LIMIT, differences, history, run_to_the_end, start_ranks, states, steps, train_loss
from transformers import AutoModel

import train_pretrain
from adaptor_hf import AdaptorModel
from adaptor_hf.data.images import read_image
from adaptor_hf.embeddings import open_cache
from adaptor_hf.evaluation import retrieval_metrics
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.training import AdaptorTrainer
from adaptor_hf.training.script_arguments import check_together, check_trained_towers, parse_arguments

FORK = multiprocessing.get_context("fork")
LIVE = {
    "train_vision_tower": "full", "train_text_tower": "lora", "image_recipe": "gloria", "sentence_recipe": "lovt",
    "layer_decay": 0.75,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """One image cannot be read: the rows behind it keep theirs."""
    rows = make_rows(tmp_path_factory.mktemp("images"))
    Path(rows[3]["path"]).write_bytes(b"no image")
    return rows


@pytest.fixture(scope="module")
def options(rows, tiny_dinov2, tiny_bert, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("run")
    return make_options(rows, tiny_dinov2, tiny_bert, folder) | {"validation_fraction": 0.3, "test_fraction": 0.3}


@pytest.fixture(scope="module")
def live(options, tmp_path_factory) -> tuple[Path, str]:
    """A run that trains both towers, with its controls, and what it said."""
    output = tmp_path_factory.mktemp("live") / "run"
    return output, said_by(options, output, **LIVE, controls=True, dataset_name="toy pairs")


def said_by(options: dict, output: Path, **changes) -> str:
    """A run in this process; what it logged and printed."""
    told = StringIO()
    handler = logging.StreamHandler(told)
    logging.root.addHandler(handler)
    try:
        with redirect_stdout(told):
            main(output, options, **changes)
    finally:
        logging.root.removeHandler(handler)
    return told.getvalue()


def record(output: Path, name: str = "run.json") -> dict:
    return json.loads((output / name).read_text(encoding="utf-8"))


class TestLiveRun:
    def test_the_plan_says_what_trains_before_anything_is_embedded(self, live):
        _, said = live
        plan = said[: said.index("To embed:")]
        assert re.search(r"  towers: \S+ \(vision; all of it trains; .*\(text; LoRA in it trains; ", plan)
        assert "  live: images and reports are read at every epoch, images by the recipe gloria, reports by " in plan
        vision = sum(value.numel() for value in load_vision_tower(str(_origin(live, "vision"))).parameters())
        assert f"{vision:,} of {vision:,} parameters of the vision tower" in plan
        assert "a block towards the input" in plan

    def test_the_frozen_towers_stand_beside_the_trained_ones(self, live, options, tmp_path):
        output, said = live
        names = [control["name"] for control in record(output, "retrieval.json")["controls"]]
        assert names == [
            "Adaptor, frozen towers", "two linear projections", "Adaptor, shuffled pairs", "Adaptor, untrained"
        ]  # fmt: skip
        assert "| Adaptor, this run (vision tower trained in full, text tower trained by LoRA) |" in said
        assert "what training the towers adds is the difference to it" in said
        # The control is what a run with frozen towers gives, to the bit; and that says nothing of towers that train.
        plain = said_by(options, tmp_path / "frozen")
        assert not re.search(r"live|trains|frozen towers|Trained", plain)
        assert record(tmp_path / "frozen")["towers"] is None
        frozen = load_file(tmp_path / "frozen" / "model.safetensors")
        assert differences(load_file(output / "frozen_towers" / "model.safetensors"), frozen) == []
        assert differences(load_file(output / "model.safetensors"), frozen)
        beside = record(output, "retrieval.json")["controls"][0]
        assert beside["metrics"] == record(tmp_path / "frozen", "retrieval.json")["metrics"]

    def test_the_score_is_that_of_the_saved_folder_on_the_files(self, live, rows):
        output, _ = live
        model = AutoModel.from_pretrained(output).eval()
        cache = open_cache(_cache_of(output)).split("test")
        files = [rows[row] for row in cache.pairs["source_row"][:]]
        images = [read_image(row["path"]) for row in files]
        processor = model.vision_model.processor
        with torch.no_grad():
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            texts = model.text_model.processor([row["report"] for row in files], padding=True, return_tensors="pt")
            found = model(pixel_values=pixels, **texts)
        texts_of_rows = torch.from_numpy(np.unique([row["report"] for row in files], return_inverse=True)[1])
        metrics, _ = retrieval_metrics(found.image_embeds, found.text_embeds, texts_of_rows)
        written = record(output, "retrieval.json")["metrics"]
        assert written["mean_recall"] == pytest.approx(metrics["mean_recall"], abs=1e-6)

    @pytest.mark.parametrize("kind", ["vision", "text"])
    def test_trained_towers_are_folders_that_other_commands_take(self, live, kind):
        output, _ = live
        load = {"vision": load_vision_tower, "text": load_text_tower}[kind]
        tower, before = load(str(output / f"{kind}_tower")), load(str(_origin(live, kind)))
        of_model = getattr(AdaptorModel.from_pretrained(output), f"{kind}_model")
        assert differences(dict(tower.state_dict()), dict(of_model.state_dict())) == []
        moved = differences({k: v for k, v in tower.state_dict().items() if k in before.state_dict()},
                            {k: v for k, v in before.state_dict().items() if k in tower.state_dict()})  # fmt: skip
        # LoRA's own matrices move, and nothing of what they stand beside.
        assert bool(moved) is (kind == "vision")
        assert tower.spec["trained"] == {"vision": "full", "text": "lora"}[kind]
        assert tower.spec["base_tower"]["name_or_path"] == _origin(live, kind).name

    def test_record_and_card_say_which_towers_trained(self, live, options):
        output, said = live
        towers = record(output)["towers"]
        assert towers["vision"]["trained"] == "full"
        assert 0 < towers["text"]["trainable_parameters"] < towers["text"]["parameters"]
        assert set(towers["text"]["sha256"]) >= {"adapter_model.safetensors"}
        held_out = open_cache(Path(options["cache_dir"]) / f"pairs-{towers['held_out']}")
        assert set(held_out.pairs["split"][:]) == {"test"}
        assert held_out.fingerprint != open_cache(options["cache_dir"]).fingerprint
        card = (output / "README.md").read_text(encoding="utf-8")
        assert "| vision tower | trained in full |" in card
        assert "| image_recipe | gloria |" in card
        assert "Adaptor, frozen towers" in card
        assert "frozen vision tower and a frozen text tower" not in card
        assert f"Trained vision tower: {output / 'vision_tower'}" in said
        assert "(by the towers as they were before this run)" in said

    def test_the_frozen_control_is_a_checkpoint_of_its_own(self, live, options):
        output, _ = live
        frozen = AdaptorModel.from_pretrained(output / "frozen_towers", load_towers=False)
        assert frozen.config.vision_tower["name_or_path"] == str(options["vision_tower"])
        assert frozen.config.vision_tower.get("trained") is None
        assert (output / "frozen_towers" / "controls" / "projections" / "config.json").is_file()
        assert (output / "frozen_towers" / "training_rows.safetensors").is_file()
        # Controls of other towers are none of the trained ones.
        assert not (output / "controls").exists()


def _origin(live: tuple[Path, str], kind: str) -> Path:
    return Path(record(live[0])["options"][f"{kind}_tower"])


def _cache_of(output: Path) -> Path:
    return (output / record(output)["inputs"]["cache"]).resolve()


def test_without_controls_it_says_that_the_gain_is_not_shown_and_lora_is_merged_on_request(options, tmp_path):
    output = tmp_path / "run"
    lora = {"train_text_tower": "lora", "lora_rank": 2, "merge_lora": True}
    said = said_by(options, output, **lora, num_train_epochs=1)
    assert "What training the towers adds is not shown" in said
    assert "What training the towers adds is not shown" in (output / "README.md").read_text(encoding="utf-8")
    # The frozen tower was not touched, and comes from the cache.
    assert record(output)["towers"].keys() == {"text", "held_out"}
    assert not (output / "vision_tower").exists()
    assert not list((output / "text_tower").glob("adapter_*"))
    plain = AutoModel.from_pretrained(output / "text_tower")  # of transformers, without this package
    before = AutoModel.from_pretrained(options["text_tower"])
    moved = {name for name, value in before.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert moved
    assert all(re.search(r"\.(query|value)\.weight$", name) for name in moved)
    # What is saved merged is what the last checkpoint has beside its weights.
    last = load_text_tower(str(output / f"checkpoint-{steps(output)[-1]}" / "text_tower"))
    own = load_text_tower(str(output / "text_tower"))
    texts = own.processor(["no pleural effusion"], return_tensors="pt")
    torch.testing.assert_close(own(**texts).pooler_output, last(**texts).pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_vision_tower": "all"}, "--train_vision_tower: what trains of a tower is frozen, lora, full or"),
        ({"train_text_tower": "0"}, "--train_text_tower: what trains"),
        ({"merge_lora": True, "train_vision_tower": "full"}, "--merge_lora would have no effect"),
        ({"lora_rank": 4}, "--lora_rank would have no effect"),
        ({"lora_rank": 0, "train_vision_tower": "lora"}, "--lora_rank is at least 1"),
        ({"image_recipe": "gloria", "train_text_tower": "full"}, "--image_recipe would have no effect"),
        ({"sentence_recipe": "lovt", "train_vision_tower": "full"}, "--sentence_recipe would have no effect"),
        ({"layer_decay": 0.5}, "--layer_decay would have no effect: both towers are frozen"),
        ({"tower_learning_rate": 1e-5}, "--tower_learning_rate would have no effect: both towers are frozen"),
        ({"resident_data": True, "train_vision_tower": "full"}, "--resident_data is of embeddings"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, changes, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_together(*parse_arguments(words({**options, "output_dir": tmp_path, **changes})))


def test_a_cache_alone_trains_no_tower(tmp_path):
    given = ["--cache", str(tmp_path), "--output_dir", str(tmp_path / "run"), "--train_text_tower", "lora"]
    with pytest.raises(ValueError, match=r"--train_text_tower with --cache: .* Give the table that it was built from"):
        check_together(*parse_arguments(given))


def test_a_tower_that_cannot_train_so_is_refused_before_anything_is_embedded(options, tmp_path):
    with pytest.raises(ValueError, match=r"--train_text_tower 3: tower .* has 2 blocks"):
        main(tmp_path / "run", options, train_text_tower="3", cache_dir=tmp_path / "embeddings")
    assert not list((tmp_path / "embeddings").glob("*"))


def test_a_dry_run_measures_live_steps_and_writes_nothing(options, tmp_path, capsys):
    main(tmp_path / "run", options, train_vision_tower="full", dry_run=True)
    said = capsys.readouterr().out
    assert re.search(r"live: a pair takes \d+ ms to train on and \d+ ms to read, .*; measured on 8 pairs", said)
    assert not (tmp_path / "run").exists()


class KilledError(Exception):
    """Of a run in a fork that was killed."""


def fork_of(run, output: Path, options: dict, **changes) -> None:
    """A run in a fork of this process, after `run()` there. Raises KilledError for SIGKILL."""

    def inside() -> None:
        sys.stdout = sys.stderr = open(output.with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115
        run()
        try:
            train_pretrain.main(words({**options, "output_dir": output, **changes}))
        except KeyboardInterrupt:
            os._exit(75)

    process = FORK.Process(target=inside)
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        raise KilledError
    assert process.exitcode in (0, 75), output.with_suffix(".log").read_text(encoding="utf-8")
    if process.exitcode == 75:
        raise KeyboardInterrupt


def kill_within_the_second_embedding() -> None:
    embed = train_pretrain.embed_held_out

    def embed_held_out(*args, **kwargs):
        def watch(event: str, arguments: tuple) -> None:
            if event == "os.rename" and "images-" in str(arguments[1]):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        return embed(*args, **kwargs)

    train_pretrain.embed_held_out = embed_held_out


def no_step() -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a step was trained again")

    AdaptorTrainer.training_step = refuse


def signal_in_the_second_epoch() -> None:
    step = AdaptorTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == trainer.state.max_steps // 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *args, **kwargs)

    AdaptorTrainer.training_step = training_step


def assert_same(output: Path, whole: Path) -> None:
    for name in ("model.safetensors", "vision_tower/model.safetensors", "text_tower/adapter_model.safetensors"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    last = f"checkpoint-{steps(whole)[-1]}"
    assert differences(states(output / last), states(whole / last)) == []
    assert history(output) == history(whole)
    assert train_loss(output) == train_loss(whole)
    assert record(output, "retrieval.json")["metrics"] == record(whole, "retrieval.json")["metrics"]
    names = [{path.relative_to(one).as_posix() for path in one.rglob("*")} for one in (output, whole)]
    assert {name for name in names[1] if not re.match("frozen_towers(/|$)", name)} == names[0]


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_ends_like_one_that_was_not(live, options, tmp_path):
    output, changes = tmp_path / "run", LIVE | {"dataset_name": "toy pairs", "cache_dir": tmp_path / "embeddings"}
    with pytest.raises(KeyboardInterrupt):
        fork_of(signal_in_the_second_epoch, output, options, **changes)
    assert steps(output)[-1] % 2, "the checkpoint is at an epoch's end"
    with pytest.raises(KilledError):
        fork_of(kill_within_the_second_embedding, output, options, **changes, resume_from_checkpoint=True)
    assert not (output / "retrieval.json").exists()
    # Once more: nothing is trained again.
    fork_of(no_step, output, options, **changes, resume_from_checkpoint=True)
    assert_same(output, live[0])


PRIVATE = {"train_vision_tower": 1, "train_text_tower": "lora", "merge_lora": True, "num_train_epochs": 1}


def test_a_private_run_names_no_place_id_or_word_of_a_report(tiny_dinov2, tiny_bert, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.chdir(tmp_path)
    table = plant_table(tmp_path)
    towers = {}
    for kind, folder in (("vision_tower", tiny_dinov2), ("text_tower", tiny_bert)):
        towers[kind] = shutil.copytree(folder, tmp_path / f"towers of {CANARY}" / kind)
    given = {"train_file": table, "key_file": tmp_path / "key", "output_dir": tmp_path / "outputs" / CANARY / "run"}
    given |= towers | SMALL | PRIVATE | {"global_batch_size": 4, "use_cpu": True}
    train_pretrain.main(["--private", "True", *words(given)])
    captured = capfd.readouterr()
    no_canary(captured.out + captured.err, given["output_dir"])
    assert "Trained vision tower: in the output folder, as vision_tower" in captured.out
    model = AdaptorModel.from_pretrained(given["output_dir"])
    assert model.config.text_tower["trained"] == "lora"


@pytest.mark.slow
def test_two_processes_train_a_tower_on_two_sources_as_one_does(rows, tiny_dinov2, tiny_bert, tmp_path):
    kept = [{name: row[name] for name in ("path", "report", "subject")} for row in rows if row is not rows[3]]
    options = make_options(rows, tiny_dinov2, tiny_bert, tmp_path)
    tables = [write_table(tmp_path, part, name) for part, name in ((kept[:20], "one.csv"), (kept[20:], "two.csv"))]
    options |= {"train_file": tables, "source_batches": "by_source", "train_vision_tower": 1, "image_recipe": "simclr"}
    # Without dropout two processes train what one does.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options["aligner"] = json.dumps(json.loads(options["aligner"]) | still)
    outputs = [tmp_path / "run1", tmp_path / "run2"]
    commands = [[sys.executable, "train_pretrain.py", *words(options | {"output_dir": one})] for one in outputs]
    run_to_the_end(commands[0], tmp_path / "log1")
    for rank in start_ranks(commands[1], tmp_path / "log2"):
        assert rank.wait(LIMIT) == 0, (tmp_path / "log2.0").read_text() + (tmp_path / "log2.1").read_text()
    one, two = ([entry["loss"] for entry in history(output) if "loss" in entry] for output in outputs)
    assert two == pytest.approx(one, rel=1e-4)
    towers = [load_vision_tower(str(output / "vision_tower")).state_dict() for output in outputs]
    before = load_vision_tower(str(tiny_dinov2)).state_dict()
    for name, value in towers[0].items():
        torch.testing.assert_close(towers[1][name], value, atol=2e-4, rtol=0)
        # Of the frozen block and what is before it no bit.
        trains = ".layer.1." in name or "layernorm" in name.replace("layer.0", "")
        assert trains or torch.equal(value, before[name]), name
    assert any(not torch.equal(value, before[name]) for name, value in towers[0].items())
    scores = [record(output, "retrieval.json") for output in outputs]
    assert list(scores[0]["sources"]) == list(scores[1]["sources"]) == ["one", "two"]
    assert scores[1]["metrics"]["mean_recall"] == pytest.approx(scores[0]["metrics"]["mean_recall"], abs=0.1)
    assert record(outputs[1])["machine"]["processes"] == 2


@pytest.mark.parametrize(
    "words", [["--image_tokens", "2"], ["--image_store", "store"], ["--views", "2", "--view_seed", "3"]]
)
def test_what_a_cache_would_keep_otherwise_than_the_tower_reads_is_refused(words):
    given = ["--train_file", "a.csv", "--vision_tower", "lite0", "--text_tower", "minilm", "--output_dir", "o"]
    groups = parse_arguments([*given, "--train_vision_tower", "2", *words])
    with pytest.raises(ValueError, match=f"{words[-2]}.* with --train_vision_tower"):
        check_trained_towers(groups[0], groups[1], groups[3])
