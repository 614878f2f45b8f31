"""A batch embedded in parts has the gradients of the whole batch."""

import pytest
import torch
from synthetic import synthetic_model

from adaptor_hf.objectives import contrastive_loss
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.grad_cache import backward_in_parts


def batch_of(rows: int = 23) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image_embeds": torch.randn(rows, 20, generator=generator, dtype=torch.float64),
        "text_embeds": torch.randn(rows, 28, generator=generator, dtype=torch.float64),
    }
    return batch, torch.randint(0, rows // 2, (rows,), generator=generator)


def embed_with(model):
    def embed(part):
        outputs = model(**part, return_logits=False)
        return outputs.image_embeds, outputs.text_embeds

    return embed


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("part_size", [1, 7, 23, 100])
@pytest.mark.parametrize("repeat", [False, True])
def test_gradients_equal_those_of_the_whole_batch(part_size, repeat):
    batch, ids = batch_of()
    whole, parts = (synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double() for _ in "ab")

    def loss_function(image, text, scale):
        return contrastive_loss(image, text, scale, normalize=False, positives=ids if repeat else None)

    expected = loss_function(*embed_with(whole)(batch), whole.get_logit_scale())
    expected.backward()
    loss = backward_in_parts(batch, part_size, embed_with(parts), parts.get_logit_scale, loss_function)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for name, gradient in gradients_of(whole).items():
        torch.testing.assert_close(gradients_of(parts)[name], gradient, rtol=1e-9, atol=1e-13, msg=name)


def test_dropout_draws_the_same_masks_in_both_passes():
    """Else the gradients would belong to other embeddings than the loss."""
    batch, _ = batch_of()
    model = synthetic_model(hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.4).double().train()
    embed = embed_with(model)
    torch.manual_seed(5)
    embeds = [
        embed({name: value[part] for name, value in batch.items()})
        for part in (slice(0, 9), slice(9, 18), slice(18, 27))
    ]
    image, text = (torch.cat(side) for side in zip(*embeds, strict=True))
    after = torch.rand(1)
    expected = contrastive_loss(image, text, model.get_logit_scale(), normalize=False)
    expected.backward()
    wanted = {name: gradient.clone() for name, gradient in gradients_of(model).items()}
    model.zero_grad()
    torch.manual_seed(5)
    loss = backward_in_parts(
        batch, 9, embed, model.get_logit_scale, lambda *args: contrastive_loss(*args, normalize=False)
    )
    assert torch.equal(torch.rand(1), after), "the second pass moved the generator"
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_with_parts_ends_with_the_weights_of_a_run_without(tmp_path, views, accumulate):
    weights, losses = [], []
    for part_size in (None, 6):
        model = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_logit_scale=20.0)
        arguments = AdaptorTrainingArguments(
            output_dir=str(tmp_path / f"{part_size}"),
            global_batch_size=16,
            num_train_epochs=2,
            gradient_accumulation_steps=accumulate,
            grad_cache_batch_size=part_size,
            learning_rate=1e-3,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer = AdaptorTrainer(
            model=model.double(),
            args=arguments,
            train_dataset=Float64(views["train"]),
            eval_dataset=views["validation"],
        )
        trainer.train()
        weights.append(model.state_dict())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-6, atol=1e-9, msg=name)


class Float64(torch.utils.data.Dataset):
    """In float32 Adam turns the last bit of a gradient near zero into its sign."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitems__(self, rows):
        batch = self.pairs.__getitems__(rows)
        return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def test_parts_of_less_than_one_row_are_refused(tmp_path):
    with pytest.raises(ValueError, match="grad_cache_batch_size must be at least 1, got 0"):
        AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True, grad_cache_batch_size=0)
