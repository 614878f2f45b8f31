"""Checkpoints and caches of version 0.1, which read every image as grey, stay usable (tests/fixtures/version_0_1)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptor_hf import AdaptorModel, AdaptorProcessor, towers_adaptor
from adaptor_hf.data.images import read_image
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings import build_cache, open_cache, verify_cache

FIXTURE = Path(__file__).parent / "fixtures" / "version_0_1"
FACTS = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module")
def old_model():
    return AdaptorModel.from_pretrained(FIXTURE / "model").eval()


@pytest.fixture(scope="module")
def towers(old_model):
    """The checkpoint's towers; the tokenizer is that of its processor, since the tower has no folder any more."""
    text = old_model.text_model
    tokenizer = AdaptorProcessor.from_pretrained(FIXTURE / "model").tokenizer
    return old_model.vision_model, towers_adaptor.TextTower(text.model, text.spec, tokenizer)


@pytest.fixture
def cache_dir(tmp_path):
    """A copy of the old cache: opening one notes what was checked."""
    return shutil.copytree(FIXTURE / "cache", tmp_path / "cache")


@pytest.fixture
def no_tower_runs(monkeypatch):
    def run(self, *args, **kwargs):
        raise AssertionError("a tower runs")

    for name in ("VisionTower", "TextTower"):
        monkeypatch.setattr(getattr(towers_adaptor, name), "forward", run)


def folders_of(cache_dir):
    return {path.name for path in cache_dir.iterdir() if path.is_dir() and path.name.startswith(("images-", "texts-"))}


def test_the_checkpoint_loads_and_gives_the_same_numbers(old_model, expected):
    state = old_model.state_dict()
    for name, weights in load_file(FIXTURE / "model" / "model.safetensors").items():
        # Of towers transformers keeps the names of the published checkpoints; the cache has a digest of them.
        if not name.startswith("vision_model."):
            assert torch.equal(weights, state[name]), name
    manifest = json.loads(next((FIXTURE / "cache").glob("images-*/cache.json")).read_text(encoding="utf-8"))
    assert towers_adaptor.tower_digest(old_model.vision_model) == manifest["identity"]["weights"]
    processor = AdaptorProcessor.from_pretrained(FIXTURE / "model")
    texts = ["Heart size is normal.", "Small left pleural effusion.", "No pneumothorax."]
    images = [read_image(FIXTURE / "images" / f"grey_{number}.png") for number in range(3)]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert {f"input.{name}" for name in inputs} == {name for name in expected if name.startswith("input.")}
    for name, value in inputs.items():
        assert torch.equal(value, expected[f"input.{name}"]), name
    with torch.no_grad():
        output = old_model(**inputs)
    # Other instruction sets and versions of torch add in another order.
    made = FACTS["made_with"]
    same = made["torch"] == torch.__version__.partition("+")[0]
    same = same and made["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        if same:
            assert torch.equal(output[name], expected[f"output.{name}"]), name
        torch.testing.assert_close(output[name], expected[f"output.{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grey", "colour", "window"])
def test_the_cache_opens_with_the_same_embeddings(name, cache_dir, expected):
    assert verify_cache(cache_dir)
    cache = open_cache(cache_dir / FACTS["pairs"][name])
    assert torch.equal(cache.image_embeddings(), expected[f"cache.{name}.images"])
    assert torch.equal(cache.text_embeddings(), expected[f"cache.{name}.texts"])
    assert cache.vision_spec.get("voi_lut", False) == (name == "window")


@pytest.mark.parametrize(
    ("name", "reading"),
    [("grey", {}), ("grey", {"image_mode": "L"}), ("colour", {"image_mode": "L"}), ("window", {"voi_lut": True})],
)
def test_the_cache_is_reused_where_the_reading_is_the_same(name, reading, cache_dir, towers, expected, no_tower_runs):
    before = folders_of(cache_dir)
    pairs = load_pairs(FIXTURE / f"{name}.csv", **reading)
    cache = build_cache(pairs, *towers, cache_dir, num_workers=0)
    assert torch.equal(cache.image_embeddings(), expected[f"cache.{name}.images"])
    assert folders_of(cache_dir) == before


def test_only_images_in_colour_are_embedded_anew(cache_dir, towers, expected):
    before = folders_of(cache_dir)
    cache = build_cache(load_pairs(FIXTURE / "colour.csv"), *towers, cache_dir, num_workers=0)
    assert folders_of(cache_dir) - before == {cache.manifest["images"]}
    assert cache.vision_spec["image_mode"] == "RGB"
    assert (cache.image_embeddings() != expected["cache.colour.images"]).any(dim=1).all()
    assert torch.equal(cache.text_embeddings(), expected["cache.colour.texts"])
