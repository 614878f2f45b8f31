"""Without --recipe a run chooses by its number of steps, says so, and is the run that --recipe gives by that name."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from script_runs import LIMIT, start_ranks

import train_pretrain
from adaptor_hf.configs import read_recipe
from adaptor_hf.training.recipe_choice import Recipe, choose_recipe, recipe_of_pairs
from adaptor_hf.training.script_arguments import parse_arguments
from adaptor_hf.verify import main as verify
from adaptor_hf.verify import verification

SHAPE = ["--aligner", '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}']


def chosen(num_pairs: int, *words: str):
    given = ["--train_file", "x", "--output_dir", "unused", "--use_cpu", *words]
    _, model, _, training = parse_arguments(given)
    recipe, model = choose_recipe(given, num_pairs, model, training)
    return recipe, model, training


def steps_one_by_one(pairs: int, batch: int, epochs: int, accumulation: int, drop_last: bool) -> int:
    """Optimizer steps of a loop that takes pairs from a heap."""
    batch, steps = min(batch, pairs), 0
    for _ in range(epochs):
        left, waiting = pairs, 0
        while left >= (batch if drop_last else 1):
            left, waiting = left - batch, waiting + 1
            if waiting == accumulation or left < (batch if drop_last else 1):
                steps, waiting = steps + 1, 0
    return steps


@pytest.mark.parametrize(
    ("pairs", "batch", "epochs", "accumulation", "drop_last"),
    [(39_936, 1024, 50, 1, False), (39_937, 1024, 50, 1, False), (39_937, 1024, 50, 1, True),
     (40_960, 1024, 50, 1, True),
     (300, 1024, 50, 1, False), (300, 1024, 1999, 1, False), (300, 1024, 2000, 1, False), (300, 64, 400, 1, False),
     (300, 64, 399, 1, False), (300, 64, 999, 3, False), (300, 64, 1000, 3, False), (7000, 100, 29, 1, False),
     (7000, 100, 28, 1, False)],
)  # fmt: skip
def test_the_paper_is_chosen_from_two_thousand_of_its_steps_on(pairs, batch, epochs, accumulation, drop_last):
    words = ["--global_batch_size", batch, "--num_train_epochs", epochs, "--gradient_accumulation_steps", accumulation]
    words += ["--dataloader_drop_last"] if drop_last else []
    recipe, _, training = chosen(pairs, *map(str, words))
    steps = steps_one_by_one(pairs, batch, epochs, accumulation, drop_last)
    assert (recipe.name, recipe.steps, recipe.chosen) == ("paper" if steps >= 2000 else "small", steps, True)
    assert training.learning_rate == {"paper": 2e-5, "small": 1e-4}[recipe.name]
    if (batch, epochs, accumulation, drop_last) == (1024, 50, 1, False):
        assert recipe_of_pairs(pairs) == recipe.name


@pytest.mark.parametrize("pairs", [1, 5, 1023, 1025, 40 * 1024 - 1, 40 * 1024, 40 * 1024 + 1, 100_000])
def test_pairs_alone_give_the_recipe_of_a_run_without_options(pairs):
    steps = steps_one_by_one(pairs, 1024, 50, 1, False)
    assert recipe_of_pairs(pairs) == ("paper" if steps >= 2000 else "small")


@pytest.mark.parametrize(("steps", "name"), [(1999, "small"), (2000, "paper")])
def test_max_steps_is_the_number_of_steps(steps, name):
    assert chosen(300, "--max_steps", str(steps))[0].name == name


def test_a_chosen_recipe_is_what_naming_it_gives_and_options_win():
    for words in ([], ["--num_train_epochs", "3"], ["--learning_rate", "5e-4"], ["--global_batch_size", "32"],
                  ["--per_device_train_batch_size", "16"], ["--weight_decay", "0.5"],
                  ["--objective", '{"positives": "pair"}']):  # fmt: skip
        recipe, model, training = chosen(300, *words)
        assert recipe.name == "small"
        given = ["--recipe", "small", "--train_file", "x", "--output_dir", "unused", "--use_cpu", *words]
        _, named_model, _, named = parse_arguments(given)
        differing = {n for n, value in vars(named).items() if n != "logging_dir" and value != vars(training)[n]}
        assert differing <= {"distributed_state", "deepspeed_plugin"}
        assert model == named_model
    assert (training.learning_rate, training.num_train_epochs, training.global_batch_size) == tuple(
        read_recipe(Path(train_pretrain.__file__).parent / "adaptor_hf/configs/recipes/small.yaml").values()
    )


def test_a_named_recipe_and_a_file_are_no_choice(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 3e-4\n")
    for words, name, rate in (
        (["--recipe", "paper"], "paper", 2e-5),
        (["--recipe=reference_code"], "reference_code", 2e-5),
        (["--recipe", "small"], "small", 1e-4),
        (["--recipe", str(path)], None, 3e-4),
    ):
        recipe, _, training = chosen(300, *words)
        assert (recipe.name, recipe.chosen, training.learning_rate) == (name, False, rate)
        assert str(path) not in recipe.describe()
        assert recipe.options() == ({"recipe": name} if name else {})


def test_the_line_names_steps_and_the_options_that_give_both_runs():
    assert Recipe("small", chosen=True, steps=312).describe() == (
        "Recipe: small, chosen because the paper's would take 312 steps, fewer than 2,000; --recipe small gives the "
        "same run, --recipe paper the paper's"
    )
    assert Recipe("paper", chosen=True, steps=13_550).describe() == (
        "Recipe: paper, chosen because it takes 13,550 steps, at least 2,000; --recipe paper gives the same run"
    )


def test_what_was_said_of_the_options_is_not_said_again(caplog):
    with pytest.warns(FutureWarning) as warned:
        chosen(300, "--positives", "study")
    assert len(warned) == 1


def run(output: Path, cache: Path, *words: str) -> None:
    train_pretrain.main(["--cache", str(cache), "--output_dir", str(output), "--use_cpu", *SHAPE, *words])


def read(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(cache_folder, tmp_path_factory) -> dict[str, Path]:
    """Two epochs without a recipe, and with each of the two, into folders of the same name."""
    folder = tmp_path_factory.mktemp("recipes")
    found = {name: folder / name / "run" for name in ("none", "small", "paper")}
    for name, output in found.items():
        named = [] if name == "none" else ["--recipe", name]
        run(output, cache_folder, "--num_train_epochs", "2", "--dataset_name", "toy", *named)
    return found


def test_a_run_that_chose_is_byte_equal_to_the_one_that_names_it(runs):
    for name in ("model.safetensors", "config.json", "README.md", "retrieval.json", "training_curves.png"):
        assert (runs["none"] / name).read_bytes() == (runs["small"] / name).read_bytes(), name
    assert (runs["none"] / "model.safetensors").read_bytes() != (runs["paper"] / "model.safetensors").read_bytes()
    one, other = (
        json.loads((runs[n] / "training_args.json").read_text().replace(str(runs[n]), "")) for n in ("none", "small")
    )
    assert {name for name in one | other if one.get(name) != other.get(name)} <= {"logging_dir"}


def test_record_card_and_verify_say_it(runs, tmp_path, capsys):
    assert read(runs["none"])["recipe"] == {"name": "small", "chosen": True, "steps": 2, "resumed": False}
    assert read(runs["paper"])["recipe"] == {"name": "paper", "chosen": False, "steps": None, "resumed": False}
    for name, recipe in (("none", "small"), ("paper", "paper")):
        assert f"| recipe | {recipe} |" in (runs[name] / "README.md").read_text(encoding="utf-8")
    assert verify([str(runs["none"])]) == 0
    assert "  recipe: small, chosen by the number of steps\n" in capsys.readouterr().out
    assert verification(runs["paper"]).recipe == "paper"
    # Inside the folder of folders, as the cache's place is relative to the run.
    copy = runs["none"].with_name("copy")
    shutil.copytree(runs["none"], copy)
    card = copy / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("| recipe | small |", "| recipe | paper |"))
    assert "Model card: the argument recipe is paper, and run.json has small." in verification(copy).differences
    shutil.rmtree(copy)


def test_the_next_run_names_the_recipe(runs, cache_folder, tmp_path, monkeypatch, capsys):
    from adaptor_hf.training.pair_cache import next_run

    said = next_run(cache_folder, "outputs/run-2", {"recipe": "small", "dataset_name": "toy"})
    assert re.search(r"--recipe small --cache \S+ --dataset_name toy --output_dir outputs/run-2$", said)
    monkeypatch.setattr("adaptor_hf.training.pair_cache.is_private", lambda: True)
    private = next_run(cache_folder, "outputs/run-2", {"recipe": "small"})
    assert "--recipe small" in private
    assert str(cache_folder) not in private


def test_a_resumed_run_keeps_the_recipe_of_its_checkpoint(cache_folder, tmp_path, caplog):
    """Also what an earlier version, whose default was the paper's, has begun."""
    by_step = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps",
               "--eval_steps", "2"]  # fmt: skip
    run(tmp_path / "whole", cache_folder, "--recipe", "paper", *by_step)
    output = tmp_path / "resumed"
    output.mkdir()
    shutil.copytree(tmp_path / "whole/checkpoint-2", output / "checkpoint-2")
    with caplog.at_level("INFO"):
        run(output, cache_folder, "--resume_from_checkpoint", "True", *by_step)
    assert (read(output)["recipe"]["name"], read(output)["recipe"]["resumed"]) == ("paper", True)
    assert "recipe: paper, that of the run that is resumed" in caplog.text
    last = [folder / "checkpoint-4/model.safetensors" for folder in (tmp_path / "whole", output)]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize(
    ("recorded", "name", "resumed"),
    [
        ({"learning_rate": 1e-4, "num_train_epochs": 30.0, "global_batch_size": 128}, "small", True),
        ({"learning_rate": 2e-5, "num_train_epochs": 50.0, "global_batch_size": 300}, "paper", True),
        ({"learning_rate": 7.0, "num_train_epochs": 9.0, "global_batch_size": 5}, "small", False),
        ({"learning_rate": 2e-5, "num_train_epochs": 9.0, "global_batch_size": 5}, "paper", True),
        (None, "small", False),
    ],
)
def test_a_checkpoint_tells_by_its_arguments(tmp_path, recorded, name, resumed):
    if recorded:
        (tmp_path / "training_args.json").write_text(json.dumps(recorded))
    recipe, _, training = chosen(300, "--resume_from_checkpoint", str(tmp_path))
    assert (recipe.name, recipe.resumed) == (name, resumed)
    assert training.learning_rate == {"paper": 2e-5, "small": 1e-4}[name]
    assert training.resume_from_checkpoint == str(tmp_path)


@pytest.mark.slow
def test_two_processes_choose_alike(cache_folder, tmp_path):
    """The log of each rank, and weights that are those of two processes that were told."""
    weights = []
    for name, named in (("chosen", []), ("named", ["--recipe", "small"])):
        output, log = tmp_path / name, tmp_path / f"{name}.log"
        words = ["--cache", str(cache_folder), "--output_dir", str(output), *SHAPE, "--max_steps", "3", *named]
        ranks = start_ranks([sys.executable, "train_pretrain.py", *words], log)
        for rank, process in enumerate(ranks):
            assert process.wait(LIMIT) == 0, log.with_suffix(f".{rank}").read_text()
        said = [log.with_suffix(f".{rank}").read_text() for rank in (0, 1)]
        assert (said[0].count("recipe: small"), said[1].count("recipe: small")) == (1, 0)
        weights.append((output / "model.safetensors").read_bytes())
        assert read(output)["training_arguments"]["learning_rate"] == 1e-4
    assert weights[0] == weights[1]
