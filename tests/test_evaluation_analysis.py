"""Spread, rank, alignment, maps and attention: on embeddings whose answer is known."""

import numpy as np
import pytest
import torch

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.evaluation.analysis import attention_maps, before_and_after, embedding_statistics, tsne_map
from adaptor_hf.evaluation.figures import draw_attention, draw_tsne
from adaptor_hf.evaluation.retrieval import alignment_and_uniformity


def model(layers: int = 2) -> AdaptorModel:
    torch.manual_seed(0)
    config = AdaptorConfig(
        hidden_size=24, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, vision_hidden_size=16,
        text_hidden_size=12,
    )  # fmt: skip
    return AdaptorModel(config).eval()


class TestStatistics:
    def test_directions_of_equal_spread_have_full_rank_and_std_one(self):
        rows = torch.cat([torch.eye(8), -torch.eye(8)])
        found = embedding_statistics(rows)
        assert found["effective_rank"] == pytest.approx(8)
        assert found["channel_std"] == pytest.approx((16 / 15) ** 0.5)

    def test_a_plane_has_rank_two_whatever_its_width(self):
        angle = torch.arange(100) * 2 * torch.pi / 100
        plane = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))[0]
        assert embedding_statistics(torch.stack([angle.cos(), angle.sin()], 1) @ plane.T)[
            "effective_rank"
        ] == pytest.approx(2, abs=1e-3)

    def test_what_all_rows_share_is_no_direction(self):
        rows = torch.nn.functional.normalize(torch.tensor([[5.0, 1, 0], [5, -1, 0]]).repeat(4, 1), dim=1)
        assert embedding_statistics(rows)["effective_rank"] == pytest.approx(1)

    def test_collapse_is_seen(self):
        found = embedding_statistics(torch.ones(20, 8))
        assert found["channel_std"] == pytest.approx(0, abs=1e-6)
        assert found["effective_rank"] == 1
        assert found["uniformity"] == pytest.approx(0, abs=1e-6)

    def test_length_of_rows_does_not_matter_and_uniformity_is_that_of_training(self):
        rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
        found = embedding_statistics(rows * torch.arange(1, 31)[:, None])
        assert found == pytest.approx(embedding_statistics(rows), abs=1e-6)
        unit = torch.nn.functional.normalize(rows, dim=1)
        assert found["uniformity"] == pytest.approx(alignment_and_uniformity(unit, unit)["image_uniformity"], abs=1e-5)

    @pytest.mark.parametrize("bad", [torch.ones(1, 4), torch.ones(4), torch.full((3, 4), float("nan"))])
    def test_bad_input_raises(self, bad):
        with pytest.raises(ValueError, match=r"two rows|NaN"):
            embedding_statistics(bad)

    def test_before_and_after_are_those_of_the_two_spaces(self):
        generator = torch.Generator().manual_seed(1)
        images, texts = torch.randn(50, 16, generator=generator), torch.randn(50, 12, generator=generator)
        adaptor = model()
        found = before_and_after(adaptor, images, texts, batch_size=7)
        assert found["image_before"] == embedding_statistics(images)
        outputs = adaptor(image_embeds=images, text_embeds=texts)
        assert found["text_after"] == pytest.approx(embedding_statistics(outputs.text_embeds.detach()), abs=1e-5)
        distance = (outputs.image_embeds - outputs.text_embeds).pow(2).sum(1).mean().item()
        assert found["pairs_after"]["alignment"] == pytest.approx(distance, abs=1e-5)
        with pytest.raises(ValueError, match="training mode"):
            before_and_after(adaptor.train(), images, texts)
        with pytest.raises(ValueError, match="matched rows"):
            before_and_after(adaptor.eval(), images, texts[:9])


def test_tsne_keeps_clusters_together_and_repeats(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    rows = 8 * np.eye(3)[labels] @ generator.normal(size=(3, 20)) + generator.normal(size=(90, 20))
    place = tsne_map(rows, perplexity=20)
    np.testing.assert_array_equal(place, tsne_map(rows, perplexity=20))
    distance = np.linalg.norm(place[:, None] - place[None], axis=2) + 1e9 * np.eye(90)
    assert (labels[distance.argmin(1)] == labels).mean() > 0.95
    assert tsne_map(rows, num_rows=60, perplexity=5).shape == (60, 2)
    with pytest.raises(ValueError, match="needs more rows"):
        tsne_map(rows[:40])
    assert (
        draw_tsne({"before": place, "after": place}, list(labels), tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    )


class TestAttention:
    def test_maps_are_the_pooled_tokens_weights_over_patches(self, tmp_path):
        adaptor, tokens = model(), torch.randn(3, 1 + 2 * 4, 16, generator=torch.Generator().manual_seed(0))
        maps = attention_maps(adaptor, tokens, (2, 4))
        assert maps.shape == (3, 2, 4)
        np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
        weights = adaptor(image_embeds=tokens, output_attentions=True).attentions[-1][0].mean(1)[:, 0, 1:].detach()
        np.testing.assert_allclose(maps[1, 1, 2], (weights / weights.sum(1, keepdim=True))[1, 6], rtol=1e-5)
        drawn = draw_attention([np.zeros((20, 30))] * 3, maps, tmp_path / "attention.png")
        assert drawn.read_bytes()[:4] == b"\x89PNG"

    def test_a_patch_moves_with_its_place(self):
        adaptor, tokens = model(), torch.randn(1, 1 + 6, 16, generator=torch.Generator().manual_seed(0))
        order = torch.tensor([0, 4, 2, 3, 1, 5, 6])
        first, second = (attention_maps(adaptor, rows, (2, 3)).reshape(-1) for rows in (tokens, tokens[:, order]))
        np.testing.assert_allclose(second, first[(order[1:] - 1).numpy()], rtol=1e-4)

    def test_pooled_vectors_projections_and_training_mode_are_refused(self):
        tokens = torch.zeros(2, 5, 16)
        with pytest.raises(ValueError, match="no patches to attend to"):
            attention_maps(model(), tokens[:, 0], (2, 2))
        with pytest.raises(ValueError, match="two linear projections"):
            attention_maps(model(layers=0), tokens, (2, 2))
        with pytest.raises(ValueError, match="training mode"):
            attention_maps(model().train(), tokens, (2, 2))
