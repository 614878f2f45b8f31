"""`train_pretrain.py` on several sources, from tables and caches to the card; on two processes, and resumed."""

import json
import shutil
import sys

import pytest
import torch
from fixtures.phantom_trees import phantom_tree
from fixtures.two_tables import write_table
from safetensors.torch import load_file
from script_runs import LIMIT, command, differences, history, run_to_the_end, start_ranks, states, steps

import train_pretrain
from adaptor_hf.data.pair_arguments import DataArguments
from adaptor_hf.embeddings import build_cache, join_caches
from adaptor_hf.phantom.generate import write_phantoms
from adaptor_hf.training.pairs import contrastive_splits, load_training_pairs
from adaptor_hf.verify import verification

# Without dropout two processes train what one does.
ALIGNER = (
    '{"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1, '
    '"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}'
)


@pytest.fixture(scope="module")
def caches(vision_tower, text_tower, tmp_path_factory):
    """Caches of two sets of phantoms, in the layout of MIMIC-CXR and as a table."""
    folder = tmp_path_factory.mktemp("caches")
    table = write_phantoms(folder / "phantoms", 40, image_size=64, seed=5)
    given = {
        "mimic_cxr": DataArguments(dataset="mimic_cxr", data_root=str(phantom_tree("mimic_cxr"))),
        "hospital": DataArguments(train_file=str(table)),
    }
    return [
        build_cache(load_training_pairs(arguments).dataset, vision_tower, text_tower, folder / name, max_text_length=32)
        for name, arguments in given.items()
    ]


def words(caches, output, **changes) -> list[str]:
    """Three epochs of batches of 8, each of one source, that of the second one twice as often as its rows are."""
    options = {
        "aligner": ALIGNER, "global_batch_size": 8, "num_train_epochs": 3, "save_total_limit": 30,
        "source_batches": "by_source", "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    places = [str(cache.path.parent) for cache in caches]
    return [*command(None, output, **(options | changes)), "--dataset_weights", "1", "2", "--cache", *places]


def run_ranks(command_line, log):
    for rank in start_ranks(command_line, log):
        assert rank.wait(LIMIT) == 0, log.with_suffix(".0").read_text() + log.with_suffix(".1").read_text()
    return log.with_suffix(".0").read_text()


@pytest.fixture(scope="module")
def of_two(caches, tmp_path_factory):
    """A whole run on two processes, and what the first one said."""
    folder = tmp_path_factory.mktemp("two")
    said = run_ranks(words(caches, folder / "run"), folder / "log")
    return folder / "run", said


class TestTwoProcesses:
    def test_they_train_what_one_process_does(self, caches, of_two, tmp_path):
        output, said = of_two
        assert "each of 8 pairs (2 processes x 4)" in said
        assert "each batch of one source" in said
        # 63 pairs, two thirds of them for 29.
        assert "hospital 29 (66.7% of an epoch, each pair 1.4 times)" in said
        train_pretrain.main(words(caches, tmp_path / "run")[2:])
        one, two = (load_file(place / "model.safetensors") for place in (tmp_path / "run", output))
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.allclose(value, two[name], atol=1e-5), name
        assert verification(tmp_path / "run").differences == []

    @pytest.mark.slow
    def test_a_run_that_is_resumed_within_an_epoch_ends_as_one_that_was_not(self, caches, of_two, tmp_path):
        output, _ = of_two
        last = steps(output)[-1]
        in_an_epoch = last // 3
        begun = next(step for step in steps(output) if step > in_an_epoch and step % in_an_epoch)
        resumed = tmp_path / "run"
        shutil.copytree(output / f"checkpoint-{begun}", resumed / f"checkpoint-{begun}")
        run_ranks(words(caches, resumed, resume_from_checkpoint=True), tmp_path / "log")
        assert differences(states(resumed / f"checkpoint-{last}", 2), states(output / f"checkpoint-{last}", 2)) == []
        assert history(resumed) == history(output)

    def test_each_source_is_evaluated_and_recorded(self, caches, of_two):
        output, said = of_two
        joined = join_caches(caches)
        parts = contrastive_splits(joined)
        evaluation = next(entry for entry in history(output) if "eval_loss" in entry)
        for name in ("mimic_cxr", "hospital"):
            assert evaluation[f"eval_{name}_num_pairs"] == parts["validation"].sources[name]
            assert 0 <= evaluation[f"eval_{name}_mean_recall"] <= 1
        retrieval = json.loads((output / "retrieval.json").read_text())
        assert list(retrieval["sources"]) == ["mimic_cxr", "hospital"]
        assert "Each source among its own images and texts" in said
        record = json.loads((output / "run.json").read_text())
        assert record["inputs"]["sources"]["hospital"]["rows"] == joined.source("hospital").splits
        card = (output / "README.md").read_text()
        # A public data set by name with its terms, another source by number alone.
        assert "| mimic_cxr |" in card.replace("\\", "")
        assert "PhysioNet" in card
        assert "source_2" in card.replace("\\", "")
        assert "hospital" not in card
        config = json.loads((output / "config.json").read_text())
        assert list(config["data_terms"]) == ["mimic_cxr"]
        assert "hospital" not in json.dumps(config)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    names = {"north.csv": 1, "south.csv": 2}
    return [str(write_table(folder / name, 40, seed, name)) for name, seed in names.items()]


def table_words(tables, output, tiny_dinov2, tiny_bert, *more) -> list[str]:
    options = {
        "vision_tower": tiny_dinov2, "text_tower": tiny_bert, "output_dir": output, "aligner": ALIGNER,
        "max_text_length": 16, "global_batch_size": 8, "num_train_epochs": 1, "use_cpu": True, "report_to": "none",
        "validation_fraction": 0.2, "test_fraction": 0.2,
    }  # fmt: skip
    listed = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*listed, "--train_file", *tables, *more]


class TestTables:
    def test_the_best_checkpoint_may_be_that_of_one_source(self, tables, tmp_path, tiny_dinov2, tiny_bert):
        more = ["--metric_for_best_model", "eval_south_mean_recall", "--dataset_weights", ".7", ".3", "--controls"]
        train_pretrain.main(table_words(tables, tmp_path / "run", tiny_dinov2, tiny_bert, *more))
        state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
        assert state["best_metric"] == next(
            entry["eval_south_mean_recall"] for entry in state["log_history"] if "eval_loss" in entry
        )
        retrieval = json.loads((tmp_path / "run" / "retrieval.json").read_text())
        assert len(retrieval["controls"]) >= 3
        assert verification(tmp_path / "run").differences == []
        card = (tmp_path / "run" / "README.md").read_text()
        assert "70.0%" in card
        assert "north" not in card

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--dataset_weights", "1", "2", "3"], "3 numbers for 2 sources"),
            (["--dataset_weights", "1", "0"], "are positive numbers"),
            (["--metric_for_best_model", "eval_west_mean_recall"], "evaluation gives no such metric"),
            (["--split_scheme", "mgca"], "split_scheme would have no effect without --dataset"),
        ],
    )
    def test_what_does_not_fit_is_said_before_any_work(self, more, message, tables, tmp_path, tiny_dinov2, tiny_bert):
        with pytest.raises(ValueError, match=message):
            train_pretrain.main(table_words(tables, tmp_path / "run", tiny_dinov2, tiny_bert, *more))
        assert not (tmp_path / "run" / "embeddings").exists()

    def test_a_private_run_names_no_source(self, tmp_path, tiny_dinov2, tiny_bert):
        names = {"canaryone.csv": 1, "canarytwo.csv": 2}
        tables = [str(write_table(tmp_path / "canaryplace" / name, 40, seed, name)) for name, seed in names.items()]
        output, log = tmp_path / "run", tmp_path / "log"
        more = ["--private", "--key_file", str(tmp_path / "ids.key"), "--dataset_weights", "1", "1"]
        line = table_words(tables, output, tiny_dinov2, tiny_bert, *more)
        said = run_to_the_end([sys.executable, "train_pretrain.py", *line], log)
        assert "table_1" in said
        assert "canary" not in said
        written = [path for path in output.rglob("*") if path.is_file()]
        assert len(written) > 10
        assert not [path.name for path in written if b"canary" in path.read_bytes()]
        assert list(json.loads((output / "retrieval.json").read_text())["sources"]) == ["table_1", "table_2"]

    def test_a_push_asks_for_the_terms_of_every_source(self, caches, tmp_path):
        line = [*words(caches, tmp_path / "run")[2:], "--push_to_hub", "True", "--dataset_name", "both"]
        with pytest.raises(PermissionError, match="mimic_cxr: PhysioNet"):
            train_pretrain.main(line)
