"""What an objective needs is there before the first step, or the message says how it is had."""

import pickle
import re
import socket

import datasets
import numpy as np
import pytest
import torch
import unpaired_training
from stored_columns import add_columns
from synthetic import synthetic_config
from torch.utils.data import DataLoader

from adaptor_hf import AdaptorModel
from adaptor_hf.data.stored_arguments import StoredArguments
from adaptor_hf.data.target_features import MultiLabel
from adaptor_hf.embeddings import import_embeddings, open_cache
from adaptor_hf.embeddings.columns import Column
from adaptor_hf.embeddings.joined import join_caches
from adaptor_hf.embeddings.sequences import image_sequence, text_sequence
from adaptor_hf.embeddings.stored import HOW
from adaptor_hf.objectives import AdaptorObjective, Objective
from adaptor_hf.objectives.base import NEEDS
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.base_trainer import keep_batch
from adaptor_hf.training.controls import ShuffledPairs
from adaptor_hf.training.needs import cache_columns, check_labels, check_needs, check_stored_options, with_needs
from adaptor_hf.training.pair_batches import SameRows

ROWS, WIDTH = 24, 8
OF_IMAGES = [
    Column("image_tokens", (5, WIDTH), "float16", {"grid": [2, 2], "prefix": 1}),
    Column("view_embeds", (2, WIDTH), "float16"),
    Column("view_boxes", (2, 5), "float32"),
    Column("view_tokens", (2, 5, WIDTH), "float16", {"grid": [2, 2], "prefix": 1}),
]
OF_TEXTS = [Column("text_tokens", (None, WIDTH), "float16"), Column("words", (None, 2), "int16")]


def make_cache(folder, labels=None, columns=True):
    """Random vectors with tokens of their width; 16 training and 8 validation rows."""
    generator = np.random.default_rng(0)
    vectors = [generator.normal(size=(ROWS, WIDTH)).astype(np.float32) for _ in "it"]
    table = {"image_id": [f"i{row}" for row in range(ROWS)], "text": [f"report {row}" for row in range(ROWS)]}
    table = datasets.Dataset.from_dict(table | {"split": ["train"] * 16 + ["validation"] * 8})
    if labels is not None:
        values, feature = labels
        table = table.add_column("labels", values, feature=feature)
    cache = import_embeddings(*vectors, table, folder)
    if columns:
        for modality, own in (("images", OF_IMAGES), ("texts", OF_TEXTS)):
            add_columns(folder / cache.manifest[modality], own, generator.integers(1, 6, ROWS))
    return open_cache(cache.path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("plain"), columns=False)


def needing(*names: str) -> Objective:
    class Needing(AdaptorObjective):
        name, needs = "needing", frozenset(names)

    return Needing()


class Tokens(AdaptorObjective):
    """Each text asks the tokens of its image. It notes what it was given."""

    name, needs = "asking", frozenset({"pairs", "image_tokens", "text_tokens", "words"})

    def __init__(self):
        super().__init__()
        self.query, self.seen = torch.nn.Linear(16, 16, bias=False), []

    def forward(self, encoded, rows, gather):
        image, text = encoded.image, encoded.text
        words = (text.tokens * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True)
        weights = (image.tokens @ self.query(text.pooled + words)[:, :, None]).softmax(1)
        encoded.image.pooled = torch.nn.functional.normalize((weights * image.tokens).sum(1), dim=1)
        self.seen.append((image.tokens.shape[1:], text.tokens.shape[1] == text.mask.shape[1], set(rows)))
        return super().forward(encoded, rows, gather)


def trainer_of(folder, objective, train, validation=None, **kwargs):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    small |= {"vision_hidden_size": WIDTH, "text_hidden_size": WIDTH}
    small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # In float32 Adam turns the last bit of a gradient near zero into its sign.
    model = AdaptorModel(synthetic_config(**small)).double()
    options = {"global_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3, "save_strategy": "no"}
    if validation is None:
        options["eval_strategy"] = "no"
    arguments = AdaptorTrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, load_best_model_at_end=False, report_to=[],
        **(options | kwargs),
    )  # fmt: skip
    return AdaptorTrainer(
        model=model, args=arguments, objective=objective, train_dataset=train, eval_dataset=validation
    )


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict() | {f"own.{name}": value for name, value in trainer.objective.state_dict().items()}


class TestTheSource:
    def test_its_batches_are_the_sequences_that_the_adaptor_reads(self, cache):
        names = ("image_tokens", "text_tokens", "words")
        view = cache.with_columns(*names, sequences=True).select([3, 17, 4]).select([2, 0, 1])
        batch, separate = view[:], cache.with_columns(*names)[[4, 3, 17]]
        expected = image_sequence(separate, cache.stored_columns["image_tokens"])
        assert batch["image_embeds"].shape == (3, 1 + 4, WIDTH), "the class token is left out"
        assert torch.equal(batch["image_embeds"], expected)
        sequence, mask = text_sequence(separate)
        assert torch.equal(batch["text_embeds"], sequence)
        assert torch.equal(batch["text_attention_mask"], mask)
        assert torch.equal(batch["words"], separate["words"])
        assert list(batch) == [name for name in view.column_names if name in batch]
        assert set(batch) == set(view.column_names)
        loaded = pickle.loads(pickle.dumps(view))[:]
        (from_worker,) = DataLoader(view, 3, collate_fn=keep_batch, num_workers=1)
        for other in (loaded, from_worker, view.to_device("cpu")[[0, 1, 2]]):
            assert other.keys() == batch.keys()
            assert all(torch.equal(other[name], values) for name, values in batch.items())
        assert "image_tokens" in cache.with_columns(*names)[:]

    def test_joined_caches_give_sequences_too(self, cache, tmp_path):
        other = make_cache(tmp_path / "b")
        joined = join_caches([cache, other]).with_columns("image_tokens", sequences=True)
        assert pickle.loads(pickle.dumps(joined))[[0, ROWS]]["image_embeds"].shape == (2, 5, WIDTH)
        with pytest.raises(ValueError, match="caches that are joined have none in common"):
            joined.with_columns("targets")

    def test_a_shuffled_text_comes_with_its_own_mask_and_words(self, cache):
        view = cache.with_columns("text_tokens", "words", "view_boxes", sequences=True)
        shuffled = ShuffledPairs(view, seed=1)
        batch, own, other = shuffled.__getitems__([0, 5, 9]), view[[0, 5, 9]], view[shuffled.partner[[0, 5, 9]]]
        assert not torch.equal(own["text_attention_mask"].sum(1), other["text_attention_mask"].sum(1))
        for name, values in batch.items():
            of_texts = name in ("text_embeds", "text_attention_mask", "text_row", "words")
            assert torch.equal(values, (other if of_texts else own)[name]), name

    def test_what_the_user_opened_stays_and_nothing_is_opened_that_is_not_needed(self, cache, plain):
        assert with_needs(AdaptorObjective(), cache) is cache
        assert with_needs(needing("words"), cache.with_columns("view_embeds")).columns == ("view_embeds", "words")
        assert not with_needs(needing("words"), cache).sequences
        examples = [{"image_embeds": [1.0]}]
        assert with_needs(needing("words"), examples) is examples
        assert with_needs(needing("views"), cache).columns == ("view_embeds", "view_boxes")
        assert "view_tokens" in with_needs(needing("views", "image_tokens"), cache).columns

    @pytest.mark.parametrize(
        ("values", "feature", "expected"),
        [
            ([0, None, 2] * 8, datasets.ClassLabel(names=["a", "b", "c"]), torch.tensor([0, -1, 2])),
            ([[1.0, None], [0.0, 1.0], [-1.0, 0.5]] * 8, MultiLabel(["a", "b"]),
             torch.tensor([[1.0, float("nan")], [0.0, 1.0], [-1.0, 0.5]])),
            ([[1, 2], None, [3, 4]] * 8, datasets.List(datasets.Value("int16")),
             torch.tensor([[1.0, 2.0], [float("nan")] * 2, [3.0, 4.0]])),
            ([0.5, None, 2.0] * 8, datasets.Value("float64"), torch.tensor([0.5, float("nan"), 2.0])),
        ],
    )  # fmt: skip
    def test_labels_of_the_table_are_targets_of_the_batch(self, tmp_path, values, feature, expected):
        view = make_cache(tmp_path, (values, feature), columns=False).with_columns("targets")
        for rows in (view, view.to_device("cpu"), pickle.loads(pickle.dumps(view))):
            found = rows[[3, 1, 2]]["targets"]
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert "targets" in view.column_names

    @pytest.mark.parametrize("values", [["a"] * ROWS, [[1], [1, 2]] * 12])
    def test_labels_that_are_no_numbers_are_refused(self, tmp_path, values):
        cache = make_cache(tmp_path, (values, None), columns=False)
        with pytest.raises(ValueError, match=r"needs targets: this cache's labels are .*lists of equally many numbers"):
            check_needs(needing("targets"), cache)


class TestWhatIsMissing:
    @pytest.mark.parametrize("need", [need for need in NEEDS if need not in ("pairs", "targets")])
    def test_a_cache_without_it_is_refused_with_the_option_that_keeps_it(self, plain, need, tmp_path):
        (column, *_) = cache_columns({need})
        with pytest.raises(ValueError, match=f"The objective Needing needs .*has no {column}: it keeps one") as caught:
            trainer_of(tmp_path, needing("pairs", need), plain.split("train")).train()
        assert HOW[column] in str(caught.value)
        assert str(plain.path.parent) not in str(caught.value)
        assert re.search("--([a-z_]+)", str(caught.value))[1] in {*vars(StoredArguments())}
        # Before anything is written.
        assert not any(tmp_path.iterdir())

    def test_labels_and_texts_that_a_cache_lacks(self, cache, tmp_path):
        with pytest.raises(ValueError, match=r"needs targets: this cache has no targets\. A build keeps them"):
            check_needs(needing("targets"), cache)
        generator = np.random.default_rng(0)
        vectors = [generator.normal(size=(4, WIDTH)).astype(np.float32) for _ in "it"]
        table = datasets.Dataset.from_dict({"image_id": list("abcd"), "text": ["x", None, "y", None]})
        unpaired = import_embeddings(*vectors, table, tmp_path)
        with pytest.raises(ValueError, match=r"needs pairs, and 2 of 4 rows .* have no text\. Take cache.paired\(\)"):
            check_needs(AdaptorObjective(), unpaired)
        check_needs(AdaptorObjective(), unpaired.paired())
        check_needs(needing(), unpaired)

    @pytest.mark.parametrize(
        ("need", "wanted", "column"),
        [
            ("image_tokens", r"image_embeds of shape \(1 \+ tokens, D\)", {"image_embeds": np.ones((5, 3))}),
            ("text_tokens", r"text_embeds of shape \(1 \+ tokens, D\)", {"text_embeds": np.ones((5, 3))}),
            ("words", "a column words of numbers", {"words": [[0, 1]]}),
            ("sentences", "a column sentences of numbers", {"sentences": [[0, 1]]}),
            ("views", r"view_embeds of shape \(views, D\) or view_pixel_values", {"view_embeds": [[1.0]]}),
            ("targets", "a column targets of numbers", {"targets": 3}),
        ],
    )
    def test_an_example_without_it_is_refused_with_what_it_should_have(self, need, wanted, column):
        example = {"image_embeds": [1.0, 2.0, 3.0], "text_embeds": [1.0, 2.0, 3.0]}
        for dataset in ([example] * 3, datasets.Dataset.from_list([example] * 3)):
            with pytest.raises(ValueError, match=f"it has image_embeds, text_embeds, text_row. Give {wanted}"):
                check_needs(needing("pairs", need), dataset)
        check_needs(needing("pairs", need), [example | column] * 3)
        if need != "targets":
            assert need in StoredArguments.__annotations__

    def test_pixels_and_token_ids_give_the_tokens_of_their_side(self):
        of_image = {"pixel_values": np.ones((1, 2, 2)), "text_embeds": [1.0]}
        of_text = {"image_embeds": [1.0], "input_ids": [1, 2]}
        check_needs(needing("image_tokens"), [of_image])
        check_needs(needing("text_tokens"), [of_text])
        for need, other, said in (("text_tokens", of_image, "texts"), ("image_tokens", of_text, "images")):
            with pytest.raises(ValueError, match=f"needs tokens of {said}"):
                check_needs(needing(need), [other])

    def test_looking_at_an_example_draws_nothing_from_the_run(self):
        class Drawing(list):
            def __getitem__(self, row):
                noise = torch.rand(1) + np.random.rand()
                return {"image_embeds": noise, "text_embeds": noise, "words": [1]}

        torch.manual_seed(3)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        check_needs(needing("words"), Drawing([0]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]

    @pytest.mark.parametrize("needs", ["pairs", {"tokens"}, ["pairs", "captions"]])
    def test_a_need_that_there_is_none_of_is_refused(self, cache, needs):
        objective = needing()
        objective.needs = needs
        with pytest.raises(ValueError, match=r"The objective Needing says that it needs '.*some of pairs, image"):
            check_needs(objective, cache)
        with pytest.raises(ValueError, match="says that it needs"):
            cache_columns(needs)

    def test_options_of_a_build_that_keep_too_little_are_refused_before_a_tower_runs(self):
        objective = type(needing("pairs", "image_tokens", "words", "views"))
        with pytest.raises(ValueError, match=r"needs views. Add --views 2\."):
            check_stored_options(objective, StoredArguments(image_tokens="all", words=True))
        with pytest.raises(ValueError, match=r"tokens of images and words and views. Add --image_tokens all --words"):
            check_stored_options(objective, StoredArguments())
        check_stored_options(objective, StoredArguments(image_tokens="2", words=True, views=1))
        check_stored_options(AdaptorObjective, StoredArguments())
        with pytest.raises(ValueError, match="the pairs have no labels: the options of a table read none"):
            check_labels(type(needing("targets")), ["image", "text"])
        check_labels(type(needing("targets")), ["labels"])

    def test_every_need_beyond_pairs_has_columns(self):
        for need in NEEDS:
            assert bool(cache_columns([need])) == (need != "pairs")


class TestTraining:
    def test_tokens_reach_the_objective_and_are_trained_on_in_every_way_alike(self, cache, tmp_path):
        """From disk and on the device, as a whole and in parts, from a cache and from examples."""
        results = []
        parts = {name: cache.split(name) for name in ("train", "validation")}
        opened = {name: with_needs(Tokens(), part) for name, part in parts.items()}
        longest = max(int(part[:]["text_attention_mask"].sum(1).max()) for part in opened.values())
        examples = {name: examples_of(part, longest) for name, part in opened.items()}
        for number, (data, options) in enumerate([
            (parts, {}), (parts, {"resident_data": True}), (parts, {"grad_cache_batch_size": 3}), (examples, {}),
        ]):  # fmt: skip
            torch.manual_seed(1)
            trainer = trainer_of(
                tmp_path / str(number), Tokens().double(), data["train"], data["validation"], **options
            )
            untrained = {name: value.clone() for name, value in weights_of(trainer).items()}
            trainer.train()
            assert trainer.objective.seen
            for shape, masked, rows in trainer.objective.seen:
                assert shape == (4, 16)
                assert masked
                assert "words" in rows
            results.append((weights_of(trainer), trainer.state.log_history))
            moved = [name for name, value in weights_of(trainer).items() if not torch.equal(value, untrained[name])]
            assert {"own.query.weight", "visual_projection.weight"} <= set(moved)
        for weights, log in results[1:]:
            for name, value in results[0][0].items():
                torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-9, msg=name)
            for name in ("loss", "eval_loss", "eval_mean_recall"):
                values = [[line[name] for line in one if name in line] for one in (results[0][1], log)]
                assert values[0] == pytest.approx(values[1], rel=1e-6)
                assert values[0]

    @pytest.mark.parametrize("part_size", [None, 3])
    def test_a_column_called_labels_changes_no_loss(self, cache, tmp_path, part_size):
        """transformers' Trainer takes it for tokens to predict, and would weigh losses by their number."""
        results = []
        examples = [{name: cache[row][name] for name in ("image_embeds", "text_embeds")} for row in range(16)]
        for name in ("labels", "mine"):
            train = [example | {name: -100 if row % 3 else row} for row, example in enumerate(examples)]
            options = {"gradient_accumulation_steps": 2, "global_batch_size": 8, "grad_cache_batch_size": part_size}
            trainer = trainer_of(tmp_path / name, "adaptor", train, **options)
            trainer.train()
            results.append(
                (weights_of(trainer), [line["loss"] for line in trainer.state.log_history if "loss" in line])
            )
        assert results[0][1] == results[1][1]
        assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())

    def test_columns_of_an_opened_cache_do_not_disturb_an_objective_without_needs(self, cache, tmp_path):
        results = []
        for view in (cache, cache.with_columns("text_tokens", "image_tokens", "words")):
            trainer = trainer_of(tmp_path, "adaptor", view.split("train"), view.split("validation"))
            trainer.train()
            results.append((weights_of(trainer), trainer.evaluate()["eval_loss"]))
        assert results[0][1] == results[1][1]
        assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())


def examples_of(view, longest: int) -> list[dict]:
    """Single examples of a view, texts and words padded to one length."""
    found = []
    for row in range(len(view)):
        example = {name: values[0] for name, values in view[[row]].items()}
        for name, fill in (("text_embeds", 0), ("text_attention_mask", 0), ("words", -1)):
            value = example[name]
            length = longest if name != "words" else 6
            padded = value.new_full((length, *value.shape[1:]), fill)
            padded[: len(value)] = value
            example[name] = padded
        found.append(example)
    return found


class TestUnpaired:
    @pytest.mark.slow
    def test_two_ranks_train_on_other_numbers_of_images_than_of_texts_as_one_process_does(self, tmp_path):
        """Also in parts, each side cut for itself."""
        expected = unpaired_training.train(str(tmp_path / "one"), 1)
        # 31 images of 16 studies, in two batches of 8 studies.
        assert expected["images"].tolist() == [15.5] * 2
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        torch.multiprocessing.spawn(unpaired_training.run, args=(str(tmp_path), port, [None, 3]), nprocs=2)
        for rank in range(2):
            for found in torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True):
                for name, value in expected.items():
                    torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)

    def test_batches_that_accelerate_would_cut_by_rows_are_refused(self, tmp_path):
        """It cuts each column by the rows of the first one: a process would get images of other texts."""
        said = r"dispatch_batches cuts each batch by rows, and this one has \d+ of image_embeds and 8 of text_embeds"
        with pytest.raises(ValueError, match=said):
            unpaired_training.train(str(tmp_path), 1, accelerator_config={"dispatch_batches": True})
        pair = {"image_embeds": torch.ones(3, 2), "text_embeds": torch.ones(3, 2), "note": "x", "one": torch.ones(())}
        assert SameRows(keep_batch)(pair) is pair
