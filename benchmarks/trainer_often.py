"""
Runs of AdaptorTrainer in a process of their own, by whichever version of the package is on PYTHONPATH;
`bench_objective.py` starts one process a version. Reads the name of a case a line, writes CPU-seconds a step a line.

    python benchmarks/trainer_often.py FOLDER
"""

import contextlib
import io
import statistics
import sys
import time
from pathlib import Path

# Name: shape of the model, rows of a batch, rows of a part of GradCache, steps. The small ones are all overhead.
PAPER, SMALL = {}, {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
CASES = {
    "the paper's Adaptor, 256 pairs": (PAPER, 256, None, 4),
    "the same, GradCache in 4 parts": (PAPER, 256, 64, 3),
    "a small Adaptor, 16 pairs": (SMALL, 16, None, 60),
    "the same small one, GradCache in 4 parts": (SMALL, 16, 4, 30),
}


def cpu_seconds_a_step(cache, folder: Path, name: str) -> float:
    """Median over the steps of a run, but for the first, which pays for what is set up once."""
    import torch
    from transformers import TrainerCallback

    from adaptor_hf import AdaptorConfig, AdaptorModel
    from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

    class Clock(TrainerCallback):
        times: list[float]

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(time.process_time())

    shape, batch, part, steps = CASES[name]
    torch.manual_seed(0)
    arguments = AdaptorTrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=steps,
        global_batch_size=batch,
        grad_cache_batch_size=part,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=10,
        load_best_model_at_end=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    clock = Clock()
    clock.times = []
    model = AdaptorModel(AdaptorConfig(**shape))
    AdaptorTrainer(model=model, args=arguments, train_dataset=cache, callbacks=[clock]).train()
    return statistics.median(after - before for before, after in zip(clock.times, clock.times[1:], strict=False))


def main(folder: Path) -> None:
    import torch

    from adaptor_hf.embeddings import open_cache

    torch.set_num_threads(1)
    cache = open_cache(folder / "cache")
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            spent = cpu_seconds_a_step(cache, folder, line.strip())
        print(spent, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
