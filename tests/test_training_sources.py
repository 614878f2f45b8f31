"""AdaptorTrainer reads every kind of data set in one way: training, evaluation and prediction give the same numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from synthetic import synthetic_model
from torch.utils.data import Dataset as TorchDataset

from adaptor_hf import AdaptorModel, AdaptorProcessor
from adaptor_hf.embeddings.stored import HOW, StoredTexts
from adaptor_hf.image_processing_adaptor import processor_of_tower
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.pair_batches import (
    PairCollator,
    describe_bad_batch,
    side_of_column,
    split_inputs,
    with_text_rows,
)
from adaptor_hf.training.pair_evaluation import embed_pairs


class Rows(TorchDataset):
    """Single examples, as most tutorials write them."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, row):
        return self.examples[row]


class Batches(Rows):
    """Finished batches, without ids."""

    def __getitems__(self, rows):
        return {name: torch.stack([self.examples[row][name] for row in rows]) for name in self.examples[0]}


def examples_of(view) -> list[dict]:
    return [view[row] for row in range(len(view))]


def columns_of(view) -> dict:
    batch = view[:]
    return {name: values.tolist() for name, values in batch.items()} | {"image_id": [str(row) for row in batch["row"]]}


def without(examples: list[dict], *names: str) -> list[dict]:
    return [{name: value for name, value in example.items() if name not in names} for example in examples]


SOURCES = {
    "a list of dictionaries": examples_of,
    "a list of lists of numbers": lambda view: [
        {name: value.tolist() for name, value in example.items()} for example in examples_of(view)
    ],
    "a torch data set of examples": lambda view: Rows(examples_of(view)),
    "examples without ids of texts": lambda view: Rows(without(examples_of(view), "text_row", "study", "row")),
    "a torch data set of batches without ids": lambda view: Batches(without(examples_of(view), "text_row", "row")),
    "datasets": lambda view: Dataset.from_dict(columns_of(view)),
    "datasets with torch format": lambda view: Dataset.from_dict(columns_of(view)).with_format("torch"),
    "datasets with numpy format": lambda view: Dataset.from_dict(columns_of(view)).with_format("numpy"),
    "the cache on the device": lambda view: view.to_device("cpu"),
}


def make_trainer(folder: Path, train, validation, model=None, **kwargs) -> AdaptorTrainer:
    options = {"global_batch_size": 16, "num_train_epochs": 2, "learning_rate": 3e-3, "per_device_eval_batch_size": 8}
    trained = {name: kwargs.pop(name) for name in ("processing_class", "data_collator") if name in kwargs}
    arguments = AdaptorTrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **(options | kwargs))
    model = synthetic_model() if model is None else model
    return AdaptorTrainer(model=model, args=arguments, train_dataset=train, eval_dataset=validation, **trained)


def run(folder: Path, parts: dict, **kwargs) -> dict:
    """Weights after training, metrics of evaluation, and predictions with theirs."""
    trainer = make_trainer(folder, parts["train"], parts["validation"], **kwargs)
    trainer.train()
    predicted = trainer.predict(parts["test"])
    return {
        "weights": trainer.model.state_dict(),
        "evaluated": trainer.evaluate(),
        "predicted": predicted.predictions,
        "metrics": predicted.metrics,
    }


@pytest.fixture(scope="module")
def of_cache(views, tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("cache"), views)


@pytest.mark.parametrize("kind", SOURCES)
def test_each_kind_of_data_set_gives_the_numbers_of_the_cache(views, of_cache, tmp_path, kind):
    parts = {name: SOURCES[kind](view) for name, view in views.items()}
    assert len(views["train"].text_rows) > len(np.unique(views["train"].text_rows))
    found = run(tmp_path, parts)
    for name, value in of_cache["weights"].items():
        assert torch.equal(value, found["weights"][name]), name
    for name, expected in of_cache["evaluated"].items():
        if "runtime" not in name and "per_second" not in name:
            assert found["evaluated"][name] == expected, name
    assert found["metrics"] == of_cache["metrics"]
    for one, other in zip(found["predicted"], of_cache["predicted"], strict=True):
        assert np.array_equal(one, other)


def test_predictions_are_the_models_and_their_metrics_those_of_evaluation(views, tmp_path):
    trainer = make_trainer(tmp_path, views["train"], views["validation"])
    predicted = trainer.predict(views["test"])
    with torch.no_grad():
        output = trainer.model.eval()(**{name: views["test"][:][name] for name in ("image_embeds", "text_embeds")})
    for found, expected in zip(predicted.predictions, (output.image_embeds, output.text_embeds), strict=True):
        assert np.allclose(found, expected.numpy(), atol=1e-6)
    evaluated = trainer.evaluate(views["test"], metric_key_prefix="test")
    assert predicted.metrics.items() <= evaluated.items()
    assert predicted.metrics["test_num_pairs"] == len(views["test"])


def test_evaluation_draws_nothing_from_the_generator_of_dropout(views):
    model = synthetic_model()
    before = torch.get_rng_state()
    embed_pairs(model, Rows(examples_of(views["test"])), 8)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def raw(tiny_dinov2, tiny_bert):
    """A model with towers, its processor, 24 pairs as pixels and tokens of different lengths, some with equal texts."""
    torch.manual_seed(0)
    model = AdaptorModel.from_towers(
        str(tiny_dinov2), str(tiny_bert), hidden_size=48, num_attention_heads=4, intermediate_size=64
    )
    from adaptor_hf.towers_adaptor import load_text_processor

    tokenizer = load_text_processor(model.config.text_tower)
    processor = AdaptorProcessor(processor_of_tower(model.config.vision_tower), tokenizer)
    generator = np.random.default_rng(0)
    words = ["no", "effusion", "left", "right", "small", "large"]
    texts = [" ".join(generator.choice(words, size=1 + row % 7)) for row in range(23)]
    texts.append(texts[5])
    examples = []
    for text in texts:
        pixels = torch.from_numpy(generator.normal(size=(3, 28, 28)).astype(np.float32))
        examples.append({"pixel_values": pixels, **tokenizer(text)})
    assert len(set(texts)) < len(texts)
    return model, processor, examples, len(set(texts))


def test_pixels_and_tokens_give_what_embeddings_of_the_same_towers_give(raw, tmp_path):
    model, processor, examples, num_texts = raw
    with torch.no_grad():
        embedded = []
        for example in examples:
            tokens = {name: torch.tensor([example[name]]) for name in ("input_ids", "attention_mask")}
            image = model.vision_model(pixel_values=example["pixel_values"][None]).pooler_output[0]
            embedded.append({"image_embeds": image, "text_embeds": model.text_model(**tokens).pooler_output[0]})
    results = []
    for name, source in {"raw": examples, "datasets": Dataset.from_list(
        [example | {"pixel_values": example["pixel_values"].numpy()} for example in examples]
    ), "embedded": embedded}.items():  # fmt: skip
        trainer = make_trainer(
            tmp_path / name, source, source, model, global_batch_size=8, processing_class=processor, save_strategy="no",
            load_best_model_at_end=False,
        )  # fmt: skip
        predicted = trainer.predict(source)
        results.append((predicted.predictions, trainer.evaluate()["eval_mean_recall"]))
        assert len(embed_pairs(model, source, 8, trainer.data_collator)["text_row"].unique()) == num_texts
    for found, recall in results[:2]:
        assert recall == results[2][1]
        for one, other in zip(found, results[2][0], strict=True):
            assert np.allclose(one, other, atol=1e-5)
    # It learns from them too.
    trainer = make_trainer(tmp_path, examples, examples, model, global_batch_size=8, processing_class=processor)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_tokens_of_different_lengths_need_a_processor(raw, tmp_path):
    model, _, examples, _ = raw
    with pytest.raises(ValueError, match=r"different lengths\. Give the trainer the processor"):
        make_trainer(tmp_path, examples, examples, model, global_batch_size=8).evaluate()


PAIR = {"image_embeds": [1.0], "text_embeds": [1.0]}


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"image": 1, "text": "x"}], "need pixel_values or image_embeds, and .*; these have image, text"),
        ([{"image_embeds": [1.0]}], "these have image_embeds"),
        ([{"image_embeds": [1.0], "text_embeds": [1.0]}, {"image_embeds": [1.0, 2.0], "text_embeds": [1.0]}],
         r"image_embeds of a batch are of different shapes, such as \(1,\) and \(2,\)"),
        ([PAIR | {"boxes": [[1, 2]]}, PAIR | {"boxes": [[1, 2], [3, 4]]}],
         r"boxes of a batch are of different shapes.*remove_columns\('boxes'\)"),
        ([PAIR | {"spans": [[1, 2], [3]]}], "spans of an example is a list of lists of different lengths"),
        ([PAIR | {"age": 1}, PAIR | {"age": None}, PAIR], "age is missing in 2 of the 3 examples of a batch"),
    ],
)  # fmt: skip
def test_examples_that_make_no_pairs_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        PairCollator()(examples)


def test_decimals_of_lists_are_float32_and_what_says_its_precision_keeps_it():
    half = torch.ones(1, dtype=torch.float16)
    batch = PairCollator()([{"image_embeds": [1.5], "text_embeds": half, "study": 3, "image_id": "a"}])
    assert (batch["image_embeds"].dtype, batch["text_embeds"].dtype) == (torch.float32, torch.float16)
    assert (batch["study"].dtype, set(batch)) == (torch.int64, {"image_embeds", "text_embeds", "study", "text_row"})


def test_every_column_of_numbers_is_stacked_and_what_is_none_left_out():
    picture = Image.new("L", (2, 3))
    numbers = {
        "labels": 3, "weight": np.float64(0.5), "view_boxes": np.ones((2, 5), np.float16), "flag": True,
        "targets": torch.tensor([1.0, float("nan")]), "words": [[0, 1], [1, 3]],
    }  # fmt: skip
    others = {
        "image_id": "a", "image": picture, "tags": ["a", "b"], "names": [["a"], ["b", "c"]], "nothing": None,
        "info": {"age": 3}, "source": "a file", "date": np.datetime64("2020-01-01"), "raw": b"x", "pictures": [picture],
    }  # fmt: skip
    batch = PairCollator()([PAIR | numbers | others, PAIR | numbers | others])
    assert set(batch) == {*PAIR, *numbers, "text_row"}
    kept = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items() if name in numbers}
    assert kept == {
        "labels": (torch.int64, (2,)), "weight": (torch.float32, (2,)), "view_boxes": (torch.float16, (2, 2, 5)),
        "flag": (torch.bool, (2,)), "targets": (torch.float32, (2, 2)), "words": (torch.int64, (2, 2, 2)),
    }  # fmt: skip


def test_what_the_model_does_not_take_goes_to_the_objective_under_its_own_name():
    mask = torch.ones(2, 4)
    batch = {"image_embeds": torch.ones(2, 3), "text_embeds": torch.ones(2, 3), "text_attention_mask": mask}
    batch |= {"text_row": torch.arange(2), "labels": torch.arange(2), "mine": torch.ones(2, 7), "note": "kept"}
    rows, inputs = split_inputs(batch)
    assert rows.keys() == {"text_row", "labels", "mine", "note", "text_attention_mask"}
    assert inputs.keys() == {"image_embeds", "text_embeds"}, "a mask of tokens does not go with pooled vectors"
    sequences = {"text_embeds": torch.ones(2, 4, 3)}
    assert split_inputs(batch | sequences)[1]["text_attention_mask"] is mask


def test_texts_that_are_not_as_many_as_the_images_have_rows_of_their_own():
    batch = {"image_embeds": torch.ones(5, 3), "text_embeds": torch.eye(3)[[0, 1, 0]], "row": torch.arange(5) + 70}
    rows, _ = split_inputs(batch)
    one, other, again = rows["text_row"].tolist()
    assert one == again != other
    batch["text_embeds"][1, 2] = float("inf")
    batch["image_embeds"][4, 0] = float("nan")
    said = describe_bad_batch(batch, torch.tensor(float("nan")))
    assert "image_embeds of rows [74]; text_embeds of places in the batch [1]" in said


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("pixel_values", torch.ones(3, 1, 2, 2), "in pixel_values of rows [8]. Rebuild or verify"),
        ("mine", torch.ones(3), "the model's inputs are finite: NaN or infinity in mine of rows [8]. Fill them"),
    ],
)
def test_nan_of_any_column_is_named_by_its_row(name, values, said):
    values[1] = float("nan")
    batch = {"image_embeds": torch.ones(3, 2), "row": torch.arange(3) + 7, "note": "x", name: values}
    assert said in describe_bad_batch(batch, torch.tensor(float("nan")))


def test_which_columns_are_of_images_and_which_of_texts():
    sides = {"image": ["pixel_values", "image_tokens", "view_boxes", "regions", "shallow", "image_index"]}
    sides |= {"text": ["input_ids", "attention_mask", "token_type_ids", "text_row", "text_index", "words", "sentences"]}
    sides |= {"row": ["study", "row", "source", "targets", "labels", "mine"]}
    for side, names in sides.items():
        assert {side_of_column(name) for name in names} == {side}
    for column in HOW:
        assert side_of_column(column) == ("text" if column in StoredTexts.__annotations__ else "image"), column


def test_positives_by_study_need_studies_in_training_and_in_evaluation(views, tmp_path):
    examples = without(examples_of(views["train"]), "study")
    trainer = make_trainer(tmp_path, examples, examples, positives="study")
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match="positives 'study' go by study, which the data set does not give"):
            call()
    assert math.isfinite(make_trainer(tmp_path, examples, examples, positives="pair").evaluate()["eval_loss"])


def test_equal_texts_are_equal_whatever_their_padding():
    short = {"input_ids": torch.tensor([[5, 6, 0], [5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    long = {"input_ids": torch.tensor([[9, 5, 6], [5, 6, 8]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 0]])}
    one, other = with_text_rows(short)["text_row"], with_text_rows(long)["text_row"]
    assert one[0] == other[0] == other[1]
    assert one[0] != one[1]
    given = torch.tensor([3, 3])
    assert with_text_rows(short | {"text_row": given})["text_row"] is given


def test_nan_of_examples_without_rows_is_named_by_its_place(views, tmp_path):
    examples = without(examples_of(views["train"]), "row")
    examples[0]["image_embeds"] = examples[0]["image_embeds"] * float("nan")
    trainer = make_trainer(tmp_path, examples, examples, global_batch_size=len(examples))
    with pytest.raises(FloatingPointError, match=r"image_embeds of places in the batch \[\d+\]"):
        trainer.train()
