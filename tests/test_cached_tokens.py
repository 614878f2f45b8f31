"""Who reads a cache's tokens gets what the live tower gives: sequences, attention maps, decoders and their scores."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import private_commands
import pytest
import torch
from datasets import Dataset
from PIL import Image
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorForSemanticSegmentation, AdaptorModel
from adaptor_hf.data import view_recipes
from adaptor_hf.data.reading import Reading
from adaptor_hf.data.stored_arguments import StoredArguments
from adaptor_hf.data.view_recipes import RECIPES
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.embeddings.__main__ import main as embeddings_main
from adaptor_hf.embeddings.columns import Column
from adaptor_hf.embeddings.image_store import GREY
from adaptor_hf.embeddings.manifest import read_manifest
from adaptor_hf.embeddings.sequences import HOW, grid_of, image_sequence, stored_column, text_sequence
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.analysis import attention_maps, cached_attention_maps
from adaptor_hf.frozen_towers_adaptor import VisionTower
from adaptor_hf.options.fields import own_options
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.tasks.cached_tokens import TokenRows, cached_tokens, options_of_tokens
from adaptor_hf.tasks.data import load_table
from adaptor_hf.tasks.features import tower_features
from adaptor_hf.tasks.protocols import SEGMENTATION_PROTOCOLS
from adaptor_hf.tasks.retrieval import embed_test_pairs
from adaptor_hf.tasks.segmentation import MaskCollator, segmentation_model, train_decoder
from adaptor_hf.token_sequences_adaptor import token_sequence
from adaptor_hf.towers_adaptor import load_vision_tower
from adaptor_hf.training.base_trainer import keep_batch
from adaptor_hf.training.systems import System


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(20)


@pytest.fixture(scope="module")
def adaptor():
    torch.manual_seed(0)
    config = synthetic_config(vision_hidden_size=32, text_hidden_size=32, hidden_size=16, num_attention_heads=2,
                              intermediate_size=16)  # fmt: skip
    return AdaptorModel(config).eval()


@pytest.fixture(scope="module")
def images(table):
    return load_table(table, mask_column="mask").select_columns(["image", "mask"]).select(range(8))


def live_sequence(tower, images) -> torch.Tensor:
    pixels = tower.processor(images=[row["image"] for row in images], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = tower.features(pixels)
    return torch.cat([features.pooled[:, None], features.tokens], dim=1)


def token_cache(images, tower, folder, **options):
    return cached_tokens(images, tower, folder, num_workers=0, **({"image_tokens": "all"} | options))


class TestSequences:
    def test_it_is_the_pooled_vector_and_the_tokens_without_the_class_token(self, images, vision_tower, tmp_path):
        view, kept = token_cache(images, vision_tower, tmp_path, dtype="float32")
        column = view.stored_columns["image_tokens"]
        assert (column.info["prefix"], grid_of(column)) == (1, (2, 2))
        found = image_sequence(view[np.arange(8)], column)
        torch.testing.assert_close(found, live_sequence(vision_tower, images), rtol=1e-5, atol=1e-5)
        assert kept.tolist() == list(range(8))

    def test_of_a_text_padding_is_masked_and_the_pooled_vector_is_not(self, text_tower, tmp_path):
        texts = ["no acute effusion", "small right pleural effusion is seen"]
        cache = build_cache(Dataset.from_dict({"text": texts}), text_tower=text_tower, cache_dir=tmp_path,
                            text_tokens=True, dtype="float32")  # fmt: skip
        sequence, mask = text_sequence(cache.with_columns("text_tokens")[np.arange(2)])
        for row, text in enumerate(texts):
            encoded = text_tower.processor([text], return_tensors="pt")
            with torch.inference_mode():
                output = text_tower(**encoded)
            length = encoded["input_ids"].shape[1]
            assert mask[row].tolist() == [1] * (1 + length) + [0] * (sequence.shape[1] - 1 - length)
            expected = torch.cat([output.pooler_output[:, None], output.last_hidden_state], dim=1)[0]
            torch.testing.assert_close(sequence[row, : 1 + length], expected, rtol=1e-5, atol=1e-5)

    def test_another_width_of_the_pooled_vector_is_refused_by_name(self):
        with pytest.raises(ValueError, match=r'64 wide and the tokens are 32 wide, as with pooling="cls\+mean"'):
            token_sequence(torch.zeros(2, 64), torch.zeros(2, 4, 32))
        batch = {"image_embeds": torch.zeros(2, 64), "image_tokens": torch.zeros(2, 5, 32)}
        with pytest.raises(ValueError, match="they make no sequence"):
            image_sequence(batch, Column("image_tokens", (5, 32), "float16", {"grid": [2, 2], "prefix": 1}))

    def test_a_tower_whose_pooled_vector_is_wider_is_refused_before_it_runs(self, tiny_dinov2, tmp_path):
        tower = load_vision_tower(str(tiny_dinov2), pooling="cls+mean")
        with pytest.raises(ValueError, match="64 wide and the tokens are 32 wide"):
            options_of_tokens(tower, Reading(), tmp_path, "all")


class TestWhatIsMissing:
    def test_a_cache_without_tokens_says_how_to_build_one(self, images, vision_tower, adaptor, tmp_path):
        plain = build_cache(images.select_columns(["image"]), vision_tower, cache_dir=tmp_path, num_workers=0)
        with pytest.raises(ValueError, match=r"has no image_tokens.*--image_tokens all"):
            cached_attention_maps(adaptor, plain)
        with pytest.raises(ValueError, match=r"open_cache\(path, columns="):
            image_sequence(plain[np.arange(2)], Column("image_tokens", (5, 32), "float16", {"grid": [2, 2]}))
        with pytest.raises(ValueError, match="has no text_tokens: it keeps regions"):
            stored_column({"regions": Column("regions", (4, 32), "float16")}, "text_tokens")

    def test_options_that_messages_name_exist(self, adaptor):
        options = {f"--{item.name}" for item in own_options(StoredArguments)}
        said = list(HOW.values())
        for call in (
            lambda: attention_maps(adaptor, torch.zeros(2, 16), (2, 2)),
            lambda: AdaptorForSemanticSegmentation(synthetic_config(num_labels=2))(image_embeds=torch.zeros(2, 20)),
        ):
            with pytest.raises(ValueError, match="--image_tokens") as error:
                call()
            said.append(str(error.value))
        for message in said:
            named = re.findall(r"--\w+", message)
            assert named, message
            assert set(named) <= options, message


class TestAttention:
    # float16 has 11 bits; the maps' weights are near 1/4.
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-4), ("int8", 5e-3)])
    def test_maps_are_those_of_the_live_tower(self, dtype, tolerance, images, vision_tower, adaptor, tmp_path):
        live = attention_maps(adaptor, live_sequence(vision_tower, images), (2, 2))
        view, _ = token_cache(images, vision_tower, tmp_path, dtype=dtype)
        found = cached_attention_maps(adaptor, view, batch_size=3)
        np.testing.assert_allclose(found, live, atol=tolerance)
        # They differ between places and images by more than that.
        assert np.ptp(live, axis=(1, 2)).min() > 10 * tolerance
        np.testing.assert_allclose(cached_attention_maps(adaptor, view, [5, 2]), live[[5, 2]], atol=tolerance)

    def test_a_coarser_grid_has_maps_of_that_grid(self, images, vision_tower, adaptor, tmp_path):
        view, _ = token_cache(images, vision_tower, tmp_path, image_tokens=1)
        assert cached_attention_maps(adaptor, view).shape == (8, 1, 1)


def scores(model, train, collator):
    protocol = replace(SEGMENTATION_PROTOCOLS["rigorous"], augment=False)
    trainer = train_decoder(model, train, train, (collator, collator), protocol, seed=0, epochs=2)
    counts = trainer.predict(train).predictions
    return 2 * counts[:, 0].sum() / (counts[:, 1].sum() + counts[:, 2].sum()), model


class TestDecoders:
    # Of float16: what rounding tokens to 11 bits does to two epochs of training.
    @pytest.mark.parametrize("of", ["adaptor", "tower"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 5e-3)])
    def test_training_on_cached_tokens_is_that_on_images(
        self, of, dtype, tolerance, images, vision_tower, adaptor, tmp_path
    ):
        system = System("adaptor", adaptor) if of == "adaptor" else System("tower", None)
        collator = MaskCollator(vision_tower.processor, None, False)
        live, first = scores(segmentation_model(system, vision_tower, 28, 0), images, collator)
        view, _ = token_cache(images, vision_tower, tmp_path, dtype=dtype)
        second = segmentation_model(system, vision_tower, 28, 0, segmentation_decoder="tokens")
        second.adaptor.vision_model = None
        cached, second = scores(second, TokenRows(view, images, collator), keep_batch)
        assert live > 0.05
        assert cached == pytest.approx(live, abs=tolerance)
        if dtype == "float32":
            for name, value in first.decoder.state_dict().items():
                torch.testing.assert_close(second.decoder.state_dict()[name], value, rtol=1e-4, atol=1e-5)

    def test_rows_follow_their_images(self, images, vision_tower, tmp_path):
        view, _ = token_cache(images, vision_tower, tmp_path)
        collator = MaskCollator(vision_tower.processor, None, False)
        rows = TokenRows(view, images, collator)
        chosen = rows.select([6, 1])[[1, 0]]
        live = collator([images[1], images[6]])
        torch.testing.assert_close(chosen["labels"], live["labels"])
        torch.testing.assert_close(chosen["image_embeds"].float(), live_sequence(vision_tower, images.select([1, 6])),
                                   rtol=1e-2, atol=1e-2)  # fmt: skip
        assert len(rows) == 8
        assert len(rows.select([6, 1])) == 2

    def test_a_mask_of_another_shape_is_refused(self, images, vision_tower, tmp_path):
        view, _ = token_cache(images, vision_tower, tmp_path)
        stored = images.with_format("arrow")["image"][:].to_pylist()
        wide = Dataset.from_dict({"mask": [Image.fromarray(np.full((20, 60), 255, np.uint8))] * len(images)})
        wrong = wide.add_column("image", stored, feature=images.features["image"])
        with pytest.raises(ValueError, match="A mask has 60 x 20 pixels"):
            TokenRows(view, wrong, MaskCollator(vision_tower.processor, None, False))[[0]]

    def test_a_convolutional_tower_gets_the_decoder_of_tokens(self, images, tmp_path):
        tower = load_vision_tower("lite0")
        view, _ = token_cache(images, tower, tmp_path)
        model = segmentation_model(System("tower", None), tower, 224, 0, segmentation_decoder="tokens")
        batch = TokenRows(view, images, MaskCollator(tower.processor, None, False))[[0, 1]]
        assert batch["image_embeds"].shape == (2, 1 + 49, 1280)
        assert model(**batch).logits.shape == (2, 1, 224, 224)


class TestTheScript:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory, vision_tower):
        torch.manual_seed(3)
        config = synthetic_config(vision_hidden_size=32, vision_tower=vision_tower.spec, hidden_size=16,
                                  num_attention_heads=2, intermediate_size=16)  # fmt: skip
        folder = tmp_path_factory.mktemp("checkpoint") / "model"
        AdaptorModel(config).save_pretrained(folder)
        return folder

    def words(self, table, model, output, *more):
        return ["--task", "segmentation", "--model", str(model), "--table", str(table), "--mask_column", "mask",
                "--dataset_name", "phantom-boxes", "--output_dir", str(output), "--device", "cpu", "--num_resamples",
                "30", "--seeds", "0", "--epochs", "1", "--controls", "none", *more]  # fmt: skip

    def run(self, table, model, output, *more):
        train_downstream.main(self.words(table, model, output, *more))
        return {line["metric"]: line for line in read_results(output / "runs").lines}

    def test_a_cache_that_was_built_before_is_read_and_no_tower_runs(
        self, table, model, tiny_dinov2, tmp_path, monkeypatch, capsys
    ):
        columns = ["--image_column", "image", "--vision_tower", str(tiny_dinov2), "--num_workers", "0"]
        # It keeps more than is asked for later, in another dtype.
        embeddings_main(["build", str(table), *columns, "--cache_dir", str(tmp_path / "cache"), "--image_tokens", "all",
                         "--regions", "2x2", "--dtype", "float32"])  # fmt: skip
        before = {path.name for path in (tmp_path / "cache").glob("images-*")}

        def run(*args, **kwargs):
            raise AssertionError("the tower ran")

        monkeypatch.setattr(VisionTower, "features", run)
        more = ["--cached_tokens", "all", "--cache_dir", str(tmp_path / "cache"), "--save_model"]
        lines = self.run(table, model, tmp_path / "out", *more)
        assert {path.name for path in (tmp_path / "cache").glob("images-*")} == before
        line = lines["dice_pooled"]
        assert line["recipe"] == "rigorous, 1 epochs, cached tokens 2 x 2 float32"
        assert "Masks are scored within the centre crop that the tower sees" in capsys.readouterr().out
        monkeypatch.undo()
        # The saved model sees images as the cache did.
        saved = AdaptorForSemanticSegmentation.from_pretrained(tmp_path / "out/model")
        processor = saved.adaptor.vision_model.processor
        assert (processor.size.shortest_edge, processor.do_center_crop) == (32, True)

    def test_images_that_the_cache_lacks_are_added(self, table, model, vision_tower, tmp_path):
        images = load_table(table, mask_column="mask").select_columns(["image"])
        token_cache(images.select(range(5)), vision_tower, tmp_path / "cache", dtype="float32")
        options = options_of_tokens(vision_tower, Reading(), tmp_path / "cache", "all")
        assert options == {"dtype": "float32", "image_tokens": "all"}
        self.run(table, model, tmp_path / "out", "--cached_tokens", "all", "--cache_dir", str(tmp_path / "cache"))
        view, kept = cached_tokens(images, vision_tower, tmp_path / "cache", num_workers=0, **options)
        assert len(kept) == len(images) == len(view)
        assert len(list((tmp_path / "cache").glob("images-*"))) == 1

    def test_a_cache_that_keeps_everything_is_found_and_stays_the_one_to_open(
        self, table, model, vision_tower, text_tower, tmp_path
    ):
        images = load_table(table, mask_column="mask").select_columns(["image"])
        some = images.select(range(5)).add_column("text", [f"effusion {row}" for row in range(5)])
        kept = {"image_tokens": 2, "regions": (2, 2), "shallow": (1,), "image_attention": True, "views": 1,
                "view_recipe": "convirt", "view_seed": 3}  # fmt: skip
        built = build_cache(some, vision_tower, text_tower, tmp_path / "cache", dtype="int8", num_workers=0, **kept)
        # The tower's own grid is 2 x 2.
        self.run(table, model, tmp_path / "out", "--cached_tokens", "all", "--cache_dir", str(tmp_path / "cache"))
        (folder,) = (tmp_path / "cache").glob("images-*")
        assert read_manifest(folder)["rows"] == len(images)
        found = open_cache(tmp_path / "cache")
        assert found.path == built.path
        assert found.num_texts == 5

    def test_the_grid_of_the_tower_is_all_its_tokens(self, images, vision_tower, tmp_path):
        whole, _ = token_cache(images, vision_tower, tmp_path / "all")
        grid, _ = token_cache(images, vision_tower, tmp_path / "grid", image_tokens=2)
        rows = np.arange(8)
        torch.testing.assert_close(whole[rows]["image_tokens"], grid[rows]["image_tokens"], rtol=0, atol=0)
        for folder, asked, kept in (("all", 2, "all"), ("grid", "all", 2)):
            options = options_of_tokens(vision_tower, Reading(), tmp_path / folder, asked)
            assert options == {"dtype": "float16", "image_tokens": kept}

    def test_why_a_cache_is_passed_over_is_said(self, images, vision_tower, tmp_path, monkeypatch, caplog):
        def said(asked, reading=GREY):
            caplog.clear()
            assert options_of_tokens(vision_tower, reading, tmp_path, asked) == {"image_tokens": asked}
            return [line.getMessage().rpartition("differ in ")[2] for line in caplog.records]

        assert said("all") == []
        build_cache(images, vision_tower, cache_dir=tmp_path, num_workers=0)
        assert said("all") == []
        token_cache(images.select(range(5)), vision_tower, tmp_path, views=1, view_recipe="slip",
                    image_store=tmp_path / "store", image_store_size=128)  # fmt: skip
        assert said("all") == ["image_store. All images are embedded anew."]
        assert "image tokens of 5 images" in caplog.text
        assert said(1) == ["image_store, image_tokens. All images are embedded anew."]
        assert said("all", Reading("RGB")) == ["image_mode, image_store. All images are embedded anew."]
        kept = {name: recipe for name, recipe in RECIPES.items() if name not in ("slip", "simclr")}
        monkeypatch.setattr(view_recipes, "RECIPES", kept)
        assert said("all") == ["image_store, view_recipe. All images are embedded anew."]

    def test_private_mode_takes_them_when_they_are_named(self, table, model, tmp_path, monkeypatch, capfd):
        monkeypatch.setattr(private_mode, "_key", None)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
        (command,) = (one for one in private_commands.commands() if one.title == "train_downstream")
        words = [*self.words(table, model, tmp_path / "out", "--cached_tokens", "all", "--private"),
                 "--key_file", str(tmp_path / "key")]  # fmt: skip
        said = private_commands.said_by(command, words, capfd)
        assert "Private mode does not store image_tokens (" in said
        assert "name it a second time: --private_columns image_tokens" in said
        assert not list(tmp_path.rglob("images-*"))
        said = private_commands.said_by(command, [*words, "--private_columns", "image_tokens"], capfd)
        assert "does not store" not in said
        (manifest,) = map(read_manifest, (tmp_path / "out").rglob("images-*"))
        assert manifest["columns"].keys() == {"image_tokens"}
        assert manifest["rows"] == 20

    def test_other_tokens_and_towers_are_not_taken(self, images, vision_tower, tiny_dinov2, tmp_path, monkeypatch):
        token_cache(images, vision_tower, tmp_path, image_tokens=1)
        assert options_of_tokens(vision_tower, Reading(), tmp_path, "all") == {"image_tokens": "all"}
        assert options_of_tokens(vision_tower, Reading(), tmp_path, 1) == {"dtype": "float16", "image_tokens": 1}
        other = load_vision_tower(str(tiny_dinov2), pooling="mean")
        assert options_of_tokens(other, Reading(), tmp_path, 1) == {"image_tokens": 1}
        assert options_of_tokens(vision_tower, Reading("RGB"), tmp_path, 1) == {"image_tokens": 1}
        # Rows of private mode never lie beside these.
        monkeypatch.setattr("adaptor_hf.tasks.cached_tokens.key_name", lambda: "a key's name")
        assert options_of_tokens(vision_tower, Reading(), tmp_path, 1) == {"image_tokens": 1}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--cached_tokens", "most"], "--cached_tokens is all, or G"),
            (["--cached_tokens", "0"], "--cached_tokens is all, or G"),
            (["--cached_tokens", "all", "--image_size", "28"], "leave --image_size out"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, words, message, table, model, tmp_path):
        with pytest.raises(ValueError, match=message):
            self.run(table, model, tmp_path / "out", *words)


class TestOneFolder:
    """Tasks share the folder of other caches, and which one `open_cache` finds there is not for them to say."""

    @pytest.mark.parametrize("task", ["tokens", "probe", "retrieval"])
    def test_the_pairs_that_are_opened_stay_and_a_task_has_its_own(
        self, task, images, vision_tower, text_tower, tmp_path
    ):
        pairs = images.select_columns(["image"]).add_column("text", [f"effusion {row}" for row in range(8)])

        def build(rows):
            return build_cache(pairs.select(range(rows)), vision_tower, text_tower, tmp_path, num_workers=0)

        def run(rows):
            if task == "tokens":
                return len(token_cache(pairs.select(range(rows)), vision_tower, tmp_path)[0])
            if task == "probe":
                return len(tower_features(pairs.select(range(rows)), vision_tower, tmp_path)[0])
            return len(embed_test_pairs(pairs.select(range(rows)), vision_tower, text_tower, tmp_path))

        # Into an empty folder: it can be opened. A build takes over, and then no task does.
        assert run(3) == len(open_cache(tmp_path)) == 3
        assert run(4) == 4
        assert len(open_cache(tmp_path)) == 3
        built = build(6)
        assert open_cache(tmp_path).path == built.path
        assert run(5) == 5
        assert open_cache(tmp_path).path == built.path
        assert open_cache(tmp_path).num_texts == 6
        assert len(build(7)) == len(open_cache(tmp_path)) == 7


class TestStoredForms:
    """What `benchmarks/bench_stored_forms.py` takes for a stored form is what a cache gives back."""

    @pytest.fixture(scope="class")
    def forms(self):
        folder = str(Path(__file__).parents[1] / "benchmarks")
        sys.path.insert(0, folder)
        import bench_stored_forms

        yield bench_stored_forms
        sys.path.remove(folder)

    @pytest.mark.parametrize(("dtype", "image_tokens"), [("float16", "all"), ("int8", "all"), ("int8", 1)])
    def test_it_is_what_a_reader_gives_back(self, dtype, image_tokens, forms, images, vision_tower, tmp_path):
        exact, _ = token_cache(images, vision_tower, tmp_path, dtype="float32")
        stored, _ = token_cache(images, vision_tower, tmp_path, dtype=dtype, image_tokens=image_tokens)
        exact, found = (view[np.arange(8)] for view in (exact, stored))
        expected = forms.as_stored(exact["image_embeds"].numpy(), dtype)
        np.testing.assert_array_equal(found["image_embeds"].float().numpy(), expected)
        side = None if image_tokens == "all" else image_tokens
        tokens = forms.pooled_grid(exact["image_tokens"][:, 1:].reshape(8, 2, 2, 32).numpy(), side)
        expected = forms.as_stored(tokens, dtype).reshape(8, -1, 32)
        # Means are summed in another order: a value may fall on the other side of a step of int8.
        tolerance = 0 if side is None else 0.01
        np.testing.assert_allclose(found["image_tokens"][:, 1:].float().numpy(), expected, rtol=0, atol=tolerance)
        count = 1 + tokens[0, ..., 0].size
        expected = {"float16": count * 32 * 2, "int8": count * (32 + 4)}[dtype]
        assert stored.stored_columns["image_tokens"].row_bytes == expected

    def test_recall_and_dice_are_those_of_other_code(self, forms):
        generator = np.random.default_rng(0)
        similarity = generator.normal(size=(30, 30)) + 2 * np.eye(30)
        ways = [[np.mean(np.argsort(-matrix)[:, :k] == np.arange(30)[:, None], axis=1) * k for k in (1, 5, 10)]
                for matrix in (similarity, similarity.T)]  # fmt: skip
        np.testing.assert_allclose(forms.hits_of(similarity), np.mean(ways, axis=(0, 1)))
        tokens, texts = generator.normal(size=(4, 6, 5)), generator.normal(size=(3, 5))
        one = forms.attention_similarity(forms.unit(tokens), forms.unit(texts))[2, 1]
        weights = torch.softmax(torch.tensor(forms.unit(tokens)[2] @ forms.unit(texts)[1]) / 0.07, 0).numpy()
        mixed = weights @ forms.unit(tokens)[2]
        assert one == pytest.approx(mixed @ forms.unit(texts)[1] / np.linalg.norm(mixed))
