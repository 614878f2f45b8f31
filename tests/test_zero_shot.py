"""Zero-shot scores: means of normalised prompts, each image alone, higher where the finding is."""

import pytest
import torch
from synthetic import synthetic_config
from torch.nn.functional import normalize

from adaptor_hf import AdaptorModel
from adaptor_hf.tasks import embed_prompts, zero_shot_scores

POSITIVE = ["pleural effusion", "effusion seen on the left", "there is a small effusion"]
NEGATIVE = ["no pleural effusion", "lungs clear"]


@pytest.fixture
def model(text_tower):
    torch.manual_seed(0)
    return AdaptorModel(synthetic_config(vision_hidden_size=20, text_hidden_size=text_tower.hidden_size)).eval()


@pytest.fixture
def images():
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(1))


def embed(model, text_tower, text):
    pooled = text_tower(**text_tower.processor([text], return_tensors="pt")).pooler_output
    return model.get_text_features(text_embeds=pooled).pooler_output[0]


@torch.no_grad()
def test_a_class_is_the_normalised_mean_of_its_normalised_prompts(model, text_tower):
    mean = torch.stack([normalize(embed(model, text_tower, text), dim=0) for text in POSITIVE]).mean(0)
    torch.testing.assert_close(embed_prompts(model, text_tower, POSITIVE), normalize(mean, dim=0))


def test_padding_and_order_of_prompts_do_not_matter(model, text_tower):
    forward, backward = (embed_prompts(model, text_tower, prompts) for prompts in (POSITIVE, POSITIVE[::-1]))
    torch.testing.assert_close(forward, backward)
    assert forward.norm() == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_a_score_is_the_cosine_to_the_positive_minus_that_to_the_negative_class(model, text_tower, images):
    scores = zero_shot_scores(model, text_tower, images, POSITIVE, NEGATIVE)
    embeds = normalize(model.get_image_features(image_embeds=images).pooler_output, dim=1)
    expected = embeds @ embed_prompts(model, text_tower, POSITIVE) - embeds @ embed_prompts(model, text_tower, NEGATIVE)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(zero_shot_scores(model, text_tower, images, NEGATIVE, POSITIVE), -scores)
    assert scores.abs().max() > 1e-4


def test_an_image_scores_the_same_whatever_is_beside_it(model, text_tower, images):
    together = zero_shot_scores(model, text_tower, images, POSITIVE, NEGATIVE)
    alone = torch.cat([zero_shot_scores(model, text_tower, image[None], POSITIVE, NEGATIVE) for image in images])
    beside_outliers = zero_shot_scores(model, text_tower, torch.cat([images, 100 * images]), POSITIVE, NEGATIVE)[:6]
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    torch.testing.assert_close(beside_outliers, together, atol=1e-6, rtol=0)


def test_half_precision_embeddings_of_a_cache_are_taken(model, text_tower, images):
    scores = zero_shot_scores(model, text_tower, images.half(), POSITIVE, NEGATIVE)
    expected = zero_shot_scores(model, text_tower, images.half().float(), POSITIVE, NEGATIVE)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [([], ValueError, "at least one prompt"), ("effusion", TypeError, r"Pass \['effusion'\]")],
)
def test_no_prompt_or_a_lone_string_is_refused(model, text_tower, images, prompts, error, message):
    with pytest.raises(error, match=message):
        zero_shot_scores(model, text_tower, images, POSITIVE, prompts)


def test_dropout_never_reaches_a_score(model, text_tower, images):
    with pytest.raises(ValueError, match="training mode"):
        zero_shot_scores(model.train(), text_tower, images, POSITIVE, NEGATIVE)
