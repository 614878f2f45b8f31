"""train_pretrain.py on splits of a table's own, on unusual data, and on what objectives need beside pairs."""

import json
import re
from pathlib import Path

import pytest
from pretrain_runs import ROWS, main, make_options, make_rows, planned_pairs, write_table

from adaptor_hf.embeddings import build_cache
from adaptor_hf.tasks.data import load_table


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    return make_rows(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def options(rows, tiny_dinov2, tiny_bert, tmp_path_factory) -> dict:
    return make_options(rows, tiny_dinov2, tiny_bert, tmp_path_factory.mktemp("run"))


ASKS_TOKENS = """
import torch
from adaptor_hf.objectives import AdaptorObjective

class AsksTokens(AdaptorObjective):
    name = "asks_tokens"
    needs = frozenset({"pairs", "image_tokens", "text_tokens"})

    def forward(self, encoded, rows, gather):
        image, text = encoded.image, encoded.text
        assert image.tokens.shape[1] == 4 and text.tokens.shape[:2] == text.mask.shape
        weights = (image.tokens @ text.pooled[:, :, None]).softmax(1)
        image.pooled = torch.nn.functional.normalize((weights * image.tokens).sum(1), dim=1)
        return super().forward(encoded, rows, gather)
"""


def test_an_objective_that_needs_tokens_is_trained_on_them_or_says_which_option_keeps_them(options, tmp_path, capsys):
    file = tmp_path / "asks_tokens.py"
    file.write_text(ASKS_TOKENS)
    changes = {"objective": f"{file}:AsksTokens", "cache_dir": tmp_path / "embeddings", "num_train_epochs": 1}
    missing = r"AsksTokens needs tokens of images and tokens of texts. Add --image_tokens all --text_tokens\."
    with pytest.raises(ValueError, match=missing):
        main(tmp_path / "out", options, **changes)
    assert not (tmp_path / "embeddings").exists()
    kept = ["--image_tokens", "all", "--text_tokens", "True"]
    main(tmp_path / "out", options, *kept, controls=True, **changes)
    assert "Retrieval on the test split" in capsys.readouterr().out
    # A ready cache without them is refused by what it lacks, before the run leaves anything.
    main(tmp_path / "plain", options, **changes | {"objective": "adaptor", "cache_dir": tmp_path / "plain_cache"})
    ready = {"cache": tmp_path / "plain_cache", "cache_dir": None, "vision_tower": None, "text_tower": None}
    table = dict.fromkeys(("train_file", "image_column", "text_column", "patient_column", "validation_fraction",
                           "test_fraction"))  # fmt: skip
    with pytest.raises(ValueError, match=r"AsksTokens needs tokens of images: .* has no image_tokens"):
        main(tmp_path / "other", options, **changes | ready | table)


ASKS_LABELS = """
import torch
from adaptor_hf.objectives import AdaptorObjective

class AsksLabels(AdaptorObjective):
    needs = frozenset({"pairs", "targets"})

    def setup(self, model, args):
        super().setup(model, args)
        self.head = torch.nn.Linear(model.config.hidden_size, 2)

    def forward(self, encoded, rows, gather):
        loss = super().forward(encoded, rows, gather)["loss"]
        labels = rows["targets"]
        of_labels = torch.nn.functional.binary_cross_entropy_with_logits(self.head(encoded.image.pooled), labels)
        return {"loss": loss + of_labels, "labels": of_labels, "left": labels[:, 0].sum(), "right": labels[:, 1].sum()}
"""


def test_an_objective_that_needs_labels_is_trained_on_those_of_a_table_or_says_how_they_come(
    options, rows, tiny_dinov2, tiny_bert, tmp_path
):
    file = tmp_path / "asks_labels.py"
    file.write_text(ASKS_LABELS)
    changes = {"objective": f"{file}:AsksLabels", "global_batch_size": ROWS, "num_train_epochs": 1}
    missing = "AsksLabels needs targets, .*load_table reads with label_columns and text_column, and give it as --cache"
    with pytest.raises(ValueError, match=missing):
        main(tmp_path / "out", options, **changes, cache_dir=tmp_path / "embeddings")
    assert not (tmp_path / "embeddings").exists()

    # As the message says.
    parts = ["train"] * 26 + ["validation"] * 6 + ["test"] * 8
    labels = [{"left": number % 3 // 2, "right": number % 5 // 4} for number in range(ROWS)]
    table = write_table(
        tmp_path, [row | {"part": part} | one for row, part, one in zip(rows, parts, labels, strict=True)], "labels.csv"
    )
    named = {"image_column": "path", "text_column": "report", "patient_column": "subject", "split_column": "part"}
    labelled = load_table(table, label_columns=["left", "right"], **named)
    build_cache(labelled, str(tiny_dinov2), str(tiny_bert), tmp_path / "labelled", num_workers=0)
    ready = {name: options[name] for name in ("learning_rate", "use_cpu", "aligner")} | {"cache": tmp_path / "labelled"}
    with pytest.warns(UserWarning, match="larger than the training data"):
        main(tmp_path / "out", ready, **changes)
    terms = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))["terms"]
    assert 0 < terms["labels"] < 2
    assert {name: terms[name] for name in ("left", "right")} == {
        name: sum(one[name] for one in labels[:26]) for name in ("left", "right")
    }


class TestSplits:
    def table(self, rows, folder, parts) -> Path:
        return write_table(folder, [row | {"part": parts[int(row["subject"][-2:])]} for row in rows])

    def test_a_split_column_without_validation_part_gets_one_from_training_patients(
        self, options, rows, tmp_path, caplog
    ):
        table = self.table(rows, tmp_path, ["train"] * 15 + ["test"] * 5)
        with caplog.at_level("INFO"):
            main(tmp_path / "model", options, train_file=table, split_column="part", num_train_epochs=1)
        train, validation, test = planned_pairs(caplog.text)[-1]
        assert (train + validation, test) == (30, 10)
        assert validation > 0
        assert "no validation split: taking one from its training patients" in caplog.text

    def test_an_alias_makes_the_held_out_part_the_test_split(self, options, rows, tmp_path, caplog):
        table = self.table(rows, tmp_path, ["train"] * 15 + ["val"] * 5)
        changes = {"split_column": "part", "split_alias": "val=test", "num_train_epochs": 1}
        with caplog.at_level("INFO"):
            main(tmp_path / "model", options, train_file=table, **changes)
        assert planned_pairs(caplog.text)[-1][2] == 10
        with pytest.raises(ValueError, match="split_alias names splits that no row has: test"):
            main(tmp_path / "no", options, train_file=table, **changes | {"split_alias": "test=train"})
        with pytest.raises(ValueError, match="reads old=new"):
            main(tmp_path / "no", options, train_file=table, **changes | {"split_alias": "val"})

    def test_without_held_out_pairs_it_trains_says_so_and_writes_a_card_without_numbers(
        self, options, rows, tmp_path, caplog
    ):
        held_out = {"validation_fraction": 0, "test_fraction": 0}
        main(tmp_path, options, **held_out)
        assert "There is no validation split: no evaluation" in caplog.text
        card = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "Not evaluated: no pairs were held out" in card
        assert "model-index" not in card
        with pytest.raises(ValueError, match="--controls chooses"):
            main(tmp_path / "no", options, **held_out, controls=True)
        assert not (tmp_path / "no").exists()

    def test_without_test_split_the_table_says_what_chose_the_epoch(self, options, tmp_path, capsys):
        main(tmp_path, options, test_fraction=0, num_train_epochs=1)
        said = capsys.readouterr().out
        assert "Retrieval on the validation split" in said
        assert "these rows also chose the epoch" in said


class TestUnusualData:
    def test_image_only_rows_are_cached_and_left_out_of_training(self, options, rows, tmp_path, caplog):
        table = write_table(tmp_path, [row | {"report": ""} if n % 4 == 0 else row for n, row in enumerate(rows)])
        with caplog.at_level("INFO"):
            main(tmp_path / "model", options, train_file=table, num_train_epochs=1)
        assert sum(planned_pairs(caplog.text)[-1]) == 30
        assert "Left out: 10 rows without text and 0 faulty rows" in caplog.text
        assert "Pairs: " not in caplog.text

    def test_a_batch_larger_than_the_data_becomes_all_of_it(self, options, tmp_path, caplog):
        with caplog.at_level("INFO"), pytest.warns(UserWarning, match=r"The global batch \(1024\) is larger"):
            main(tmp_path, options, global_batch_size=1024, num_train_epochs=1)
        train = planned_pairs(caplog.text)[-1][0]
        assert f"  steps: 1 (1 epoch), each of {train} pairs, " in caplog.text

    @pytest.mark.parametrize("count", [1, 3])
    def test_too_few_different_texts_are_refused_with_counts(self, options, rows, count, tmp_path):
        table = write_table(tmp_path, [row | {"report": "clear lungs"} for row in rows[:count]])
        with pytest.raises(ValueError, match="at least two pairs with different texts"):
            main(tmp_path / "model", options, train_file=table, max_steps=1)

    def test_a_missing_image_is_excluded_and_counted(self, options, rows, tmp_path, caplog):
        table = write_table(tmp_path, [rows[0] | {"path": str(tmp_path / "gone.png")}, *rows[1:]])
        with caplog.at_level("INFO"):
            main(tmp_path / "model", options, train_file=table, num_train_epochs=1)
        assert "Left out: 0 rows without text and 1 faulty rows" in caplog.text
        # The plan did not know: pairs and steps are said again.
        found = re.search(r"^.*Pairs: (\d+) train, (\d+) validation, (\d+) test\n.*Steps: (\d+) \(1", caplog.text, re.M)
        *pairs, steps = map(int, found.groups())
        assert sum(pairs) == sum(planned_pairs(caplog.text)[-1]) - 1 == ROWS - 1
        assert steps == -(-pairs[0] // 8)
