"""The losses, forward and backward: the whole similarity matrix against blocks of rows, by batch size.

python benchmarks/bench_loss.py
python benchmarks/bench_loss.py --rows --blocks_alone 65536     (about five minutes)
"""

import os
import resource
import sys

from measure import arguments, interleaved, medians, one_thread, print_header, print_table

WIDTH = 768


def run_loss(loss: str, form: str, rows: int) -> None:
    import torch

    from adaptor_hf.objectives import (
        chunked_cross_entropy,
        chunked_sigmoid_loss,
        contrastive_loss,
        sigmoid_contrastive_loss,
    )

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1) for _ in range(2)]
    image, text = (value.requires_grad_() for value in inputs)
    log_scale, bias = torch.tensor(2.6592, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    if loss == "sigmoid" and form == "whole":
        value = sigmoid_contrastive_loss(image, text, log_scale, bias, normalize=False)
    elif loss == "sigmoid":
        value = chunked_sigmoid_loss(image, text, log_scale.exp(), bias) / rows
    elif form == "whole":
        value = contrastive_loss(image, text, log_scale, normalize=False)
    else:
        weights = {"row_weight": 0.75 / rows, "column_weight": 0.25 / rows}
        value = chunked_cross_entropy(image, text, log_scale.exp(), **weights)
    value.backward()


def extra_peak(loss: str, form: str, rows: int) -> float:
    """MiB of peak resident memory that the loss adds, in a process of its own: a peak never goes down again."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        run_loss(loss, form, 8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run_loss(loss, form, rows)
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    # Inputs and their gradients are there in both forms.
    return int(os.read(read, 32)) / 1024 - 4 * rows * WIDTH * 4 / 2**20


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument(
        "--blocks_alone",
        type=int,
        nargs="*",
        default=[],
        help="Rows at which only the memory of the blocks is measured.",
    )
    parser.add_argument("--losses", nargs="*", default=["contrastive", "sigmoid"], help="contrastive, sigmoid.")
    options = parser.parse_args()
    one_thread()
    for loss in options.losses:
        for rows in options.blocks_alone:
            peak = extra_peak(loss, "blocks", rows)
            print(f"{loss}, {rows:,} rows in blocks: {peak:,.0f} MiB beyond the inputs and their gradients")
        if options.rows:
            compare(loss, options.rows, options.repeats)


def compare(loss: str, numbers: list[int], repeats: int) -> None:
    forms = ("whole", "blocks")
    peaks = {(form, rows): extra_peak(loss, form, rows) for rows in numbers for form in forms}
    table = []
    for rows in numbers:
        variants = {form: lambda form=form, rows=rows: run_loss(loss, form, rows) for form in forms}
        seconds = medians(interleaved(variants, repeats))
        whole, blocks = peaks["whole", rows], peaks["blocks", rows]
        ratio = f"{seconds['blocks'] / seconds['whole']:.2f}"
        cells = [f"{seconds[form]:.4f}" for form in forms] + [ratio]
        table.append([rows, *cells, f"{whole:.0f}", f"{blocks:.0f}", f"{whole / blocks:.1f}"])
    print_header(f"{loss.capitalize()} loss, width {WIDTH}", "the whole matrix", repeats)
    columns = ["rows", "whole, CPU-s", "blocks, CPU-s", "blocks / whole"]
    print_table([*columns, "whole, MiB beyond inputs", "blocks, MiB", "times less"], table)


if __name__ == "__main__":
    sys.exit(main())
