"""
One training step (forward, loss, backward, optimizer) beside the naive reference and the floor of its matrix products.

    python benchmarks/bench_step.py --repeats 7
"""

import torch
from measure import arguments, interleaved, medians, one_thread, print_header, print_table
from naive_reference import NaiveAdaptor, naive_loss, naive_optimizer

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.objectives import gathered_contrastive_loss

BASELINE = "naive reference, AdamW"
FLOOR = "floor: its matrix products alone"


def naive_step(batch: dict[str, torch.Tensor], fused: bool):
    torch.manual_seed(0)
    model = NaiveAdaptor().train()
    optimizer, _ = naive_optimizer(model, lr=2e-5, total_steps=1000, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        naive_loss(model, batch["image_embeds"], batch["text_embeds"]).backward()
        optimizer.step()

    return step


def our_step(batch: dict[str, torch.Tensor], positives: torch.Tensor | None = None, dropout: float = 0.1):
    """What AdaptorTrainer does in a step, without Trainer around it."""
    torch.manual_seed(0)
    config = AdaptorConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = AdaptorModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        output = model(**batch, return_logits=False)
        loss = gathered_contrastive_loss(
            output.image_embeds,
            output.text_embeds,
            model.get_logit_scale(),
            image_to_text_weight=config.image_to_text_weight,
            normalize=False,
            positives=positives,
            equal_counts=True,
        )
        loss.backward()
        optimizer.step()

    return step


def product_shapes(batch_size: int, width: int, intermediate: int, layers: int) -> list[tuple[int, int, int]]:
    """(m, k, n) of every product of a step without queries and keys; inputs are frozen, so projections have no dX."""
    shapes = [(batch_size, width, width), (width, batch_size, width)] * 2
    rows = 2 * batch_size
    for fan_in, fan_out in [(width, width), (width, width), (width, intermediate), (intermediate, width)] * layers:
        shapes += [(rows, fan_in, fan_out), (rows, fan_out, fan_in), (fan_in, rows, fan_out)]
    return shapes + [(batch_size, width, batch_size)] + [(batch_size, batch_size, width)] * 2


def floor(batch_size: int, width: int = 768, intermediate: int = 2048, layers: int = 2):
    shapes = product_shapes(batch_size, width, intermediate, layers)
    left = {(m, k): torch.randn(m, k) for m, k, _ in shapes}
    right = {(k, n): torch.randn(k, n) for _, k, n in shapes}
    out = {(m, n): torch.empty(m, n) for m, _, n in shapes}

    def products() -> None:
        for m, k, n in shapes:
            torch.mm(left[m, k], right[k, n], out=out[m, n])

    return products, 2e-9 * sum(m * k * n for m, k, n in shapes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch_size", type=int, default=1024)
    options = parser.parse_args()
    one_thread()
    generator = torch.Generator().manual_seed(0)
    batch = {
        name: torch.randn(options.batch_size, 768, generator=generator) for name in ("image_embeds", "text_embeds")
    }
    text_row = torch.randint(options.batch_size * 100, (options.batch_size,), generator=generator)
    products, gigaflop = floor(options.batch_size)
    variants = {
        BASELINE: naive_step(batch, fused=False),
        "naive reference, fused AdamW": naive_step(batch, fused=True),
        "ours, every other row a negative (as the reference)": our_step(batch),
        "ours, default (repeated texts are no negatives)": our_step(batch, text_row),
        "ours, dropout off": our_step(batch, dropout=0.0),
        FLOOR: products,
    }
    seconds = interleaved(variants, options.repeats)
    median = medians(seconds)
    print_header(f"Training step, batch {options.batch_size}, widths 768/768", BASELINE, options.repeats)
    rows = [
        [
            name,
            f"{value:.3f}",
            f"{min(seconds[name]):.3f}",
            f"{median[BASELINE] / value:.2f}",
            f"{median[FLOOR] / value:.2f}",
        ]
        for name, value in median.items()
    ]
    print_table(["variant", "CPU-s a step", "least", "times faster than the baseline", "floor / step"], rows)
    print(f"The floor is {gigaflop:.1f} GFLOP at {gigaflop / median[FLOOR]:.0f} GFLOP/s.")


if __name__ == "__main__":
    main()
