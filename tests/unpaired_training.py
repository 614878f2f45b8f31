"""Training with other numbers of images than of texts, on one process and on several; see tests/test_needs.py."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from divided_batches import WithHead
from synthetic import synthetic_model

from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

STUDIES, GLOBAL = 16, 8


class Studies(torch.utils.data.Dataset):
    """A row is a study: one text, and one to three images."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = [torch.randn(1 + row % 3, 20, generator=generator).double() for row in range(STUDIES)]
        self.texts = torch.randn(STUDIES, 28, generator=generator).double()

    def __len__(self):
        return STUDIES

    def __getitems__(self, rows):
        return {
            "image_embeds": torch.cat([self.images[row] for row in rows]),
            "image_index": torch.tensor([row for row in rows for _ in self.images[row]]),
            "text_embeds": self.texts[rows],
            "text_index": torch.tensor(rows),
            "study": torch.tensor(rows),
        }


class MatchStudies(WithHead):
    """All texts of a study's images among all texts, and terms that say what was seen."""

    name = "match_studies"

    def forward(self, encoded, rows, gather):
        image, text = gather.rows(self.head(encoded.image.pooled)), gather.rows(self.head(encoded.text.pooled))
        same = gather.rows(encoded.image.index)[:, None] == gather.rows(encoded.text.index)[None]
        assert (same.sum(1) == 1).all()
        logits = encoded.logit_scale.exp() * image @ text.T
        loss = -(logits.log_softmax(1) * same).sum() / same.sum() + self.temperature * image.mean(1).pow(2).mean()
        return {"loss": loss, "images": same.sum().double()}


def train(folder: str, processes: int, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    arguments = AdaptorTrainingArguments(
        output_dir=folder, use_cpu=True, disable_tqdm=True, save_strategy="no", eval_strategy="no", report_to=[],
        load_best_model_at_end=False, global_batch_size=GLOBAL, num_train_epochs=2, learning_rate=1e-3, **options,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer = AdaptorTrainer(model=model, args=arguments, objective=MatchStudies().double(), train_dataset=Studies())
    assert trainer.args.world_size == processes
    trainer.train()
    losses = torch.tensor([line["loss"] for line in trainer.state.log_history if "loss" in line])
    images = torch.tensor([line["images"] for line in trainer.state.log_history if "images" in line])
    return trainer.model.state_dict() | trainer.objective.state_dict() | {"losses": losses, "images": images}


def run(rank: int, folder: str, port: str, part_sizes: list[int | None]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    results = [train(folder, 2, grad_cache_batch_size=size) for size in part_sizes]
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
