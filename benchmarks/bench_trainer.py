"""
End to end: AdaptorTrainer on a cache beside the naive loop on its loader; and what Trainer costs around a tiny model.

    python benchmarks/bench_trainer.py --repeats 5
"""

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from bench_loader import BATCH, build_caches, shuffled, write_rows
from measure import arguments, interleaved, medians, one_thread, print_header, print_table
from naive_reference import NaiveAdaptor, naive_loader, naive_loss, naive_optimizer
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, get_linear_schedule_with_warmup

from adaptor_hf import AdaptorConfig, AdaptorModel, AdaptorOutput
from adaptor_hf.objectives import gathered_contrastive_loss
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

BASELINE = "naive reference in a bare loop, its loader and AdamW"
BARE = "bare loop, 4 parameters"


class Clock(TrainerCallback):
    """CPU time at the end of every step."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.process_time())

    def per_step(self) -> float:
        """Without the first step, which pays for what is set up once."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def trainer_arguments(folder: str, steps: int, **kwargs) -> AdaptorTrainingArguments:
    return AdaptorTrainingArguments(
        output_dir=folder,
        max_steps=steps,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        load_best_model_at_end=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **kwargs,
    )


def run_trainer(model: nn.Module, dataset: Dataset, folder: str, steps: int, **kwargs) -> float:
    clock = Clock()
    args = trainer_arguments(folder, steps, **kwargs)
    AdaptorTrainer(model=model, args=args, train_dataset=dataset, callbacks=[clock]).train()
    return clock.per_step()


def run_loop(loader, step, steps: int) -> float:
    clock = Clock()
    for index, batch in enumerate(loader):
        step(batch)
        clock.on_step_end(None, None, None)
        if index + 1 == steps:
            return clock.per_step()
    raise ValueError(f"the data hold {index + 1} batches, fewer than {steps}")


def naive_loop(files: tuple[Path, Path], steps: int):
    def run() -> float:
        torch.manual_seed(0)
        model = NaiveAdaptor().train()
        optimizer, scheduler = naive_optimizer(model, lr=2e-5, total_steps=1000)

        def step(batch) -> None:
            optimizer.zero_grad()
            naive_loss(model, batch["image_embeds"], batch["text_embeds"]).backward()
            optimizer.step()
            scheduler.step()

        return run_loop(naive_loader(*files, BATCH), step, steps)

    return run


def our_trainer(cache, folder: str, steps: int):
    def run() -> float:
        return run_trainer(AdaptorModel(AdaptorConfig()), cache, folder, steps, global_batch_size=BATCH)

    return run


class FourParameters(nn.Module):
    """A weight of three and a scale: what is left is what the loop costs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.config = SimpleNamespace(image_to_text_weight=0.75)

    def get_logit_scale(self) -> torch.Tensor:
        return self.logit_scale

    def forward(self, image_embeds, text_embeds, return_logits=False):
        return AdaptorOutput(image_embeds=image_embeds * self.weight, text_embeds=text_embeds)


class FewRows(Dataset):
    def __init__(self):
        self.image_embeds, self.text_embeds = torch.randn(4096, 3), torch.randn(4096, 3)

    def __len__(self) -> int:
        return len(self.image_embeds)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {"image_embeds": self.image_embeds[rows], "text_embeds": self.text_embeds[rows]}


def tiny_loop(steps: int):
    def run() -> float:
        model = FourParameters()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        scheduler = get_linear_schedule_with_warmup(optimizer, 2, steps)

        def step(batch) -> None:
            optimizer.zero_grad()
            output = model(**batch)
            gathered_contrastive_loss(
                output.image_embeds, output.text_embeds, model.get_logit_scale(), normalize=False, equal_counts=True
            ).backward()
            optimizer.step()
            scheduler.step()

        return run_loop(shuffled(FewRows(), batch_size=8), step, steps)

    return run


def tiny_trainer(folder: str, steps: int):
    def run() -> float:
        return run_trainer(FourParameters(), FewRows(), folder, steps, global_batch_size=8)

    return run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=20_480)
    parser.add_argument("--steps", type=int, default=4, help="Steps a measurement; the first is not counted.")
    parser.add_argument("--tiny_steps", type=int, default=300)
    options = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_rows(folder, options.rows)
        cache = build_caches(folder, files, shard_rows=options.rows // 4)["float16"]
        ours = "AdaptorTrainer on the float16 cache, its defaults"
        seconds = interleaved(
            {
                BASELINE: naive_loop(files, options.steps),
                ours: our_trainer(cache, name, options.steps),
            },
            options.repeats,
            warm_up=False,
        )
        tiny = interleaved(
            {
                BARE: tiny_loop(options.tiny_steps),
                "AdaptorTrainer, 4 parameters": tiny_trainer(name, options.tiny_steps),
            },
            options.repeats,
        )
    median = medians(seconds)
    print_header(
        f"End to end, {options.rows} pairs, batch {BATCH}, {options.steps - 1} steps a measurement",
        BASELINE,
        options.repeats,
    )
    print_table(
        ["loop", "CPU-s a step", "least", "times faster than the baseline"],
        [[n, f"{v:.3f}", f"{min(seconds[n]):.3f}", f"{median[BASELINE] / v:.2f}"] for n, v in median.items()],
    )
    median = medians(tiny)
    print_header(f"Cost of the loop itself, {options.tiny_steps} steps a measurement", BARE, options.repeats)
    print_table(
        ["loop", "CPU-ms a step", "above the bare loop"],
        [[n, f"{1e3 * v:.2f}", f"{1e3 * (v - median[BARE]):.2f}"] for n, v in median.items()],
    )


if __name__ == "__main__":
    main()
