"""
What it costs that heads are trained by Trainer: beside a plain loop that gives the same weights to the bit.

python benchmarks/bench_head_training.py

Synthetic features, one thread. A small training part shows what each training costs before its first step.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import arguments, interleaved, medians, one_thread, print_header, print_table

from adaptor_hf.heads_adaptor import ClassificationHead
from adaptor_hf.tasks.head_training import train_head
from adaptor_hf.tasks.protocols import get_protocol

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

# Protocol, rows to train on, epochs (fewer than the protocol's: the ratio is what counts).
SETTINGS = [("mgca", 10_000, 3), ("adaptor", 10_000, 5), ("gloria", 10_000, 3), ("mgca", 100, 50), ("adaptor", 100, 99)]


def rows(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random((count, 1)) < 0.3).astype(np.float32)
    features = generator.standard_normal((count, width), dtype=np.float32)
    features[:, :10] += 0.4 * labels
    return torch.from_numpy(features), torch.from_numpy(labels), labels


def main() -> None:
    from head_loop import train_by_loop

    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512, help="of the features")
    options = parser.parse_args()
    one_thread()
    print_header("Heads by Trainer and by a plain loop", "the loop of tests/head_loop.py", options.repeats)
    table = []
    for name, count, epochs in SETTINGS:
        protocol = replace(get_protocol(name), epochs=epochs, patience=None)
        train, validation = rows(count, options.width, 0), rows(max(count // 10, 50), options.width, 1)

        def head(protocol=protocol):
            torch.manual_seed(0)
            made = ClassificationHead(options.width, 1, protocol.hidden_size, protocol.dropout)
            made.exclusive = False
            return made

        def by(train_one, protocol=protocol, head=head, train=train, validation=validation):
            return lambda: train_one(head(), train, validation, protocol, protocol.learning_rates[0], 0)

        seconds = medians(interleaved({"loop": by(train_by_loop), "Trainer": by(train_head)}, options.repeats))
        steps = epochs * -(-count // protocol.batch_size)
        table.append(
            [name, f"{count:,}", f"{steps:,}", f"{seconds['loop']:.3f}", f"{seconds['Trainer']:.3f}",
             f"{seconds['Trainer'] / seconds['loop']:.2f}"]
        )  # fmt: skip
    print_table(["protocol", "rows", "steps", "loop", "Trainer", "ratio"], table)


if __name__ == "__main__":
    main()
