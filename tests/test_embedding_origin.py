"""Projected embeddings that are given as tower embeddings are noticed; normalised tower embeddings are not mistaken."""

import copy

import pytest
import torch
from torch import nn

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.embedding_origin_adaptor import are_projected

WIDTH = 96
PROJECTED = "look like projected embeddings"


@pytest.fixture(scope="module")
def model():
    """Trained for some steps, so that weight and bias of the layer norm are not 1 and 0."""
    torch.manual_seed(0)
    sizes = {"vision_hidden_size": WIDTH, "text_hidden_size": WIDTH, "hidden_size": WIDTH}
    model = AdaptorModel(AdaptorConfig(**sizes, num_attention_heads=4, intermediate_size=128))
    image = torch.randn(32, WIDTH)
    text = image + 0.5 * torch.randn(32, WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(image_embeds=image, text_embeds=text, return_loss=True).loss.backward()
        optimizer.step()
    assert model.shared_encoder.layers[-1].layer_norm2.bias.abs().max() > 0.01
    return model.eval()


@pytest.fixture
def tower_embeds():
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(3))


def said(caplog, model, **inputs) -> bool:
    """Whether a forward warns; each message is written once a process, so the memory of it is emptied."""
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()
    caplog.clear()
    with torch.no_grad():
        model(**inputs)
    return PROJECTED in caplog.text


@pytest.fixture
def warnings_seen(caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_output_that_is_fed_back_is_noticed(model, tower_embeds, warnings_seen, dtype):
    model = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        output = model(image_embeds=tower_embeds, text_embeds=tower_embeds)
        sequence = model(image_embeds=tower_embeds[:, None].repeat(1, 3, 1)).image_last_hidden_state
    assert said(warnings_seen, model, image_embeds=output.image_embeds)
    assert said(warnings_seen, model, text_embeds=output.text_embeds.flip(0)[:5].clone())
    assert said(warnings_seen, model, image_embeds=output.image_embeds.to(dtype), text_embeds=tower_embeds)
    assert said(warnings_seen, model, image_embeds=sequence)
    assert not said(warnings_seen, model, image_embeds=tower_embeds, text_embeds=tower_embeds)


def test_one_row_is_enough_in_float32(model, tower_embeds, warnings_seen):
    output = model(image_embeds=tower_embeds)
    assert all(said(warnings_seen, model, image_embeds=row[None]) for row in output.image_embeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_towers_with_normalised_embeddings_are_not_mistaken(model, dtype):
    norm = copy.deepcopy(model.shared_encoder.layers[-1].layer_norm2).to(dtype)
    generator = torch.Generator().manual_seed(1)
    vectors = nn.functional.normalize(torch.randn(20_000, WIDTH, generator=generator), dim=-1).to(dtype)
    for batch in (1, 2, 4, 16):
        alarms = sum(are_projected(part, norm) for part in vectors[: 4000 * batch if batch < 5 else None].split(batch))
        assert alarms <= 1, batch
    # After a ReLU, as of a convolutional network, no entry is negative and the mean is far from 0.
    assert not are_projected(nn.functional.normalize(vectors.float().relu(), dim=-1).to(dtype)[:16], norm)


def test_what_is_not_found_is_as_documented(model, tower_embeds):
    norm = model.shared_encoder.layers[-1].layer_norm2
    with torch.no_grad():
        embeds = model(image_embeds=tower_embeds).image_embeds
        other = AdaptorModel(model.config).eval()(image_embeds=tower_embeds).image_embeds
    assert are_projected(embeds, norm)
    assert not are_projected(2 * embeds, norm)
    assert not are_projected(nn.functional.normalize(embeds[:8] + embeds[8:], dim=-1), norm)
    assert not are_projected(other, norm)


def test_the_check_changes_no_number_and_is_off_in_training(model, tower_embeds, warnings_seen):
    trained = copy.deepcopy(model).train()
    output = model(image_embeds=tower_embeds)
    assert not said(warnings_seen, trained, image_embeds=output.image_embeds)
    projected = model._project(tower_embeds[:, None], model.visual_projection, "image_embeds")
    for layer in model.shared_encoder.layers:
        projected, _ = layer(projected)
    assert torch.equal(output.image_embeds, nn.functional.normalize(projected, dim=-1)[:, 0])
