"""The benchmarks' baseline computes what the reference does, and our training follows the same trajectory."""

import sys
from pathlib import Path

import pytest
import torch
from reference import assert_relative, golden, reference_parameters

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from naive_reference import (
    NaiveAdaptor,
    load_golden_parameters,
    naive_loss,
    naive_optimizer,
    reference_names,
    short_name,
    train_naively,
)

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.conversion import convert_reference_state_dict
from adaptor_hf.objectives import gathered_contrastive_loss
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

STEPS, BATCH, ROWS = 200, 16, 160


def golden_model() -> NaiveAdaptor:
    model = NaiveAdaptor(vision_width=32, text_width=48, width=24).double().eval()
    load_golden_parameters(model, reference_parameters())
    return model


def assert_golden_gradient(gradient: torch.Tensor, values: dict, key: str) -> None:
    if key in values:
        assert_relative(gradient, values[key])
        return
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(gradient.shape[1], 8, generator=generator, dtype=torch.float64)
    left = torch.randn(8, gradient.shape[0], generator=generator, dtype=torch.float64)
    assert_relative(gradient @ right, values[f"{key}@right"])
    assert_relative(left @ gradient, values[f"{key}@left"])


def test_outputs_loss_and_every_gradient_equal_the_golden_values():
    values, model = golden("adaptor_full"), golden_model()
    image = values["in.image_embeds_raw"].requires_grad_()
    text = values["in.text_embeds_raw"].requires_grad_()
    image_tokens, text_tokens = model(image, text)
    assert_relative(image_tokens[:, 0], values["out.image_embeds"])
    assert_relative(text_tokens[:, 0], values["out.text_embeds"])
    loss = naive_loss(model, image, text)
    assert_relative(loss, values["out.loss"])
    loss.backward()
    assert_relative(image.grad, values["grad.image_embeds_raw"])
    assert_relative(text.grad, values["grad.text_embeds_raw"])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(gradients) == len(reference_parameters())
    for name in reference_parameters():
        assert_golden_gradient(gradients[short_name(name)], values, f"grad.param.{name}")


@pytest.mark.parametrize("case", ["adaptor_seq_N1", "adaptor_seq_NN"])
def test_sequences_equal_the_golden_values(case):
    values, model = golden(case), golden_model()
    image, text = model(values["in.image_embeds_raw"], values["in.text_embeds_raw"])
    assert_relative(image, values["out.image_last_hidden"])
    assert_relative(text, values["out.text_last_hidden"])


def test_images_alone_equal_the_golden_values_with_the_batch_mixing():
    values, model = golden("adaptor_image_only_2d"), golden_model()
    rows = values["in.image_embeds_raw"]
    assert_relative(model.image_alone(rows), values["out.image_embeds_2d_call"])
    assert_relative(model.image_alone(rows[:, None])[:, 0], values["out.image_embeds_per_sample"])


class RecordedRows(torch.utils.data.Dataset):
    """Correlated pairs that note which rows were asked for."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        shared = torch.randn(ROWS, 20, generator=generator, dtype=torch.float64)
        noise = torch.randn(ROWS, 28, generator=generator, dtype=torch.float64)
        self.image_embeds, self.text_embeds = shared, torch.cat([shared, shared[:, :8]], dim=1) + 0.5 * noise
        self.batches: list[list[int]] = []

    def __len__(self) -> int:
        return ROWS

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        self.batches.append(list(rows))
        return self.read(rows)

    def read(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {
            "image_embeds": self.image_embeds[rows],
            "text_embeds": self.text_embeds[rows],
            "text_row": torch.tensor(rows),
        }


def naive_model() -> NaiveAdaptor:
    torch.manual_seed(0)
    return NaiveAdaptor(20, 28, width=48, num_heads=4, intermediate=64, dropout=0.0).double()


def our_copy(naive: NaiveAdaptor) -> AdaptorModel:
    config = AdaptorConfig(
        vision_hidden_size=20,
        text_hidden_size=28,
        hidden_size=48,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_to_text_weight=0.25,
    )
    model = AdaptorModel(config).double()
    model.load_state_dict(convert_reference_state_dict(reference_names(naive), config)[1])
    return model


def assert_same_weights(ours: AdaptorModel, naive: NaiveAdaptor) -> None:
    expected = convert_reference_state_dict(reference_names(naive), ours.config)[1]
    for name, value in ours.state_dict().items():
        assert (value - expected[name]).norm() <= 1e-9 * expected[name].norm(), name


def test_200_steps_follow_the_naive_trajectory():
    naive, rows = naive_model(), RecordedRows()
    ours = our_copy(naive).train()
    start = reference_names(naive)
    batches = [torch.randperm(ROWS, generator=torch.Generator().manual_seed(i))[:BATCH] for i in range(STEPS)]
    expected = train_naively(naive, (rows.read(batch.tolist()) for batch in batches), lr=1e-3, total_steps=STEPS)

    optimizer, scheduler = naive_optimizer(ours, lr=1e-3, total_steps=STEPS, fused=True)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        inputs = rows.read(batch.tolist())
        output = ours(image_embeds=inputs["image_embeds"], text_embeds=inputs["text_embeds"])
        loss = gathered_contrastive_loss(
            output.image_embeds, output.text_embeds, ours.get_logit_scale(), image_to_text_weight=0.25, normalize=False
        )
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert_relative(torch.tensor(losses, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64))
    assert_same_weights(ours, naive)
    assert losses[-1] < 0.7 * losses[0]
    moved = reference_names(naive)["projection.visual_projection.weight"]
    assert (moved - start["projection.visual_projection.weight"]).norm() > 0.1


def test_200_steps_of_the_trainer_follow_the_naive_trajectory(tmp_path):
    naive, rows = naive_model(), RecordedRows()
    ours = our_copy(naive)
    arguments = AdaptorTrainingArguments(
        output_dir=tmp_path,
        learning_rate=1e-3,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        positives="pair",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        load_best_model_at_end=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = AdaptorTrainer(model=ours, args=arguments, train_dataset=rows)
    trainer.train()
    assert len(rows.batches) >= STEPS
    first, second = (rows.batches[start : start + ROWS // BATCH] for start in (0, ROWS // BATCH))
    assert first != second, "every epoch is shuffled anew"
    expected = train_naively(naive, map(rows.read, rows.batches[:STEPS]), lr=1e-3, total_steps=STEPS)
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged == pytest.approx(expected, abs=1e-4)
    assert_same_weights(ours, naive)
