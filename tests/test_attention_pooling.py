"""Attention pooling: LoVT's golden values, torch's own attention, and padding that changes nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.attention_pooling_adaptor import AttentionPooling

GOLDEN = {
    name.removeprefix("lovt_avgpool_attention/"): value
    for name, value in load_file(Path(__file__).parent / "golden" / "aligners.safetensors").items()
    if name.startswith("lovt_avgpool_attention/")
}


def golden_pooling() -> AttentionPooling:
    pooling = AttentionPooling(16, 8).double()
    state = {}
    for kind in ("weight", "bias"):
        parts = GOLDEN[f"param.attention.in_proj_{kind}"].chunk(3)
        state |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        state[f"out_proj.{kind}"] = GOLDEN[f"param.attention.out_proj.{kind}"]
    pooling.load_state_dict(state)
    return pooling


def test_the_references_form_has_its_golden_values_and_gradient():
    tokens = GOLDEN["in.x"].clone().requires_grad_()
    pooled, weights = golden_pooling()(tokens, GOLDEN["in.mask"], reference=True)
    torch.testing.assert_close(pooled, GOLDEN["out.global"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weights, GOLDEN["out.weights"], rtol=1e-9, atol=1e-12)
    loss = (pooled * GOLDEN["in.probe"]).sum()
    torch.testing.assert_close(loss, GOLDEN["out.loss"], rtol=1e-9, atol=1e-12)
    loss.backward()
    torch.testing.assert_close(tokens.grad, GOLDEN["grad.x"], rtol=1e-9, atol=1e-12)


def test_by_default_only_tokens_count_so_that_padding_changes_nothing():
    pooling, tokens, mask = golden_pooling(), GOLDEN["in.x"], GOLDEN["in.mask"]
    pooled, weights = pooling(tokens, mask)
    full = mask.bool().all(1)
    assert full.tolist() == [True, False, False]
    torch.testing.assert_close(pooled[full], GOLDEN["out.global"][full], rtol=1e-9, atol=1e-12)
    assert (pooled - GOLDEN["out.global"])[~full].abs().max() > 1e-6
    for row, there in enumerate(mask.sum(1).tolist()):
        alone, own = pooling(tokens[row : row + 1, :there])
        torch.testing.assert_close(alone[0], pooled[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own[0], weights[row, :there], rtol=1e-12, atol=1e-12)
    padded = torch.cat([tokens, torch.full((3, 4, 16), 7.0, dtype=torch.float64)], 1)
    longer, _ = pooling(padded, nn.functional.pad(mask, (0, 4)))
    torch.testing.assert_close(longer, pooled, rtol=1e-12, atol=1e-12)
    old, _ = pooling(padded, nn.functional.pad(mask, (0, 4)), reference=True)
    assert (old - GOLDEN["out.global"]).abs().max() > 1e-6


def test_it_is_torchs_attention_with_the_mean_as_query():
    torch.manual_seed(0)
    pooling, theirs = AttentionPooling(24, 4).double(), nn.MultiheadAttention(24, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([getattr(pooling, f"{name}_proj").weight for name in "qkv"]))
        theirs.in_proj_bias.copy_(torch.cat([getattr(pooling, f"{name}_proj").bias for name in "qkv"]))
    theirs.out_proj.load_state_dict(pooling.out_proj.state_dict())
    tokens = torch.randn(5, 7, 24, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 1, 3, 5, 2])[:, None]
    query = (tokens * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    expected, weights = theirs(query, tokens, tokens, key_padding_mask=~mask)
    pooled, own = pooling(tokens, mask)
    torch.testing.assert_close(pooled, expected[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, weights[:, 0], rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences_also_where_no_token_is():
    torch.manual_seed(0)
    pooling = AttentionPooling(6, 2).double()
    tokens = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert torch.autograd.gradcheck(lambda values: pooling(values, mask)[0], (tokens,))
    pooled, weights = pooling(tokens, mask)
    assert pooled.isfinite().all()
    assert weights.sum(1).tolist() == pytest.approx([1, 0, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_stays_near(dtype):
    torch.manual_seed(0)
    pooling, tokens = AttentionPooling(32, 4), torch.randn(3, 5, 32)
    expected = pooling(tokens)[0]
    assert (pooling.to(dtype)(tokens.to(dtype))[0].float() - expected).abs().max() < 0.02


def pooled_model(**kwargs) -> AdaptorModel:
    torch.manual_seed(0)
    shape = {"vision_hidden_size": 24, "text_hidden_size": 16, "hidden_size": 12, "num_attention_heads": 4}
    config = AdaptorConfig(**(shape | {"intermediate_size": 20, "attention_pooling_heads": 4} | kwargs))
    return AdaptorModel(config).double().eval()


@pytest.mark.parametrize("aligner", ["adaptor", "linear", "residual", "gated", "mlp"])
def test_a_model_pools_the_tokens_of_its_sequences(aligner):
    model = pooled_model(aligner=aligner)
    text = torch.randn(3, 6, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    found = model(text_embeds=text, text_attention_mask=mask)
    by_hand, weights = model.text_pooling(text[:, 1:], mask[:, 1:])
    # A text of no token keeps the tower's vector.
    by_hand = torch.cat([by_hand[:2], text[2:, 0]])
    plain = AdaptorModel(AdaptorConfig(**{**model.config.to_dict(), "attention_pooling_heads": None})).double().eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "_pooling." not in name})
    expected = plain(text_embeds=torch.cat([by_hand[:, None], text[:, 1:]], 1), text_attention_mask=mask)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.text_pooling_weights, weights)
    assert found.image_pooling_weights is None
    short = model(text_embeds=text[1:2, :3])
    torch.testing.assert_close(short.text_embeds[0], found.text_embeds[1], rtol=1e-10, atol=1e-12)


def test_pooled_embeddings_alone_are_refused():
    model = pooled_model()
    with pytest.raises(
        ValueError, match=r"the pooled embedding is made of tokens, got one embedding each of width 24. Give"
    ):
        model(image_embeds=torch.zeros(3, 24))


def test_heads_that_do_not_divide_a_tower_are_refused():
    with pytest.raises(Exception, match=r"attention_pooling_heads \(5\) must divide vision_hidden_size \(24\)"):
        pooled_model(attention_pooling_heads=5)
