"""The contrastive loss, forward and backward: the whole similarity matrix against blocks of rows, by batch size.

python benchmarks/bench_loss.py
python benchmarks/bench_loss.py --rows --blocks_alone 65536     (about five minutes)
"""

import os
import resource
import sys

from measure import arguments, interleaved, medians, one_thread, print_header, print_table

WIDTH = 768


def run_loss(form: str, rows: int) -> None:
    import torch

    from adaptor_hf.objectives import chunked_cross_entropy, contrastive_loss

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1) for _ in range(2)]
    image, text = (value.requires_grad_() for value in inputs)
    log_scale = torch.tensor(2.6592, requires_grad=True)
    if form == "whole":
        loss = contrastive_loss(image, text, log_scale, normalize=False)
    else:
        weights = {"row_weight": 0.75 / rows, "column_weight": 0.25 / rows}
        loss = chunked_cross_entropy(image, text, log_scale.exp(), **weights)
    loss.backward()


def extra_peak(form: str, rows: int) -> float:
    """MiB of peak resident memory that the loss adds, in a process of its own: a peak never goes down again."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        run_loss(form, 8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run_loss(form, rows)
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
    options = parser.parse_args()
    one_thread()
    for rows in options.blocks_alone:
        print(f"{rows:,} rows in blocks: {extra_peak('blocks', rows):,.0f} MiB beyond the inputs and their gradients")
    forms = ("whole", "blocks")
    peaks = {(form, rows): extra_peak(form, rows) for rows in options.rows for form in forms}
    if not options.rows:
        return
    table = []
    for rows in options.rows:
        variants = {form: lambda form=form, rows=rows: run_loss(form, rows) for form in forms}
        seconds = medians(interleaved(variants, options.repeats))
        whole, blocks = peaks["whole", rows], peaks["blocks", rows]
        ratio = f"{seconds['blocks'] / seconds['whole']:.2f}"
        cells = [f"{seconds[form]:.3f}" for form in forms] + [ratio]
        table.append([rows, *cells, f"{whole:.0f}", f"{blocks:.0f}", f"{whole / blocks:.1f}"])
    print_header(f"Contrastive loss, width {WIDTH}", "the whole matrix", options.repeats)
    columns = ["rows", "whole, CPU-s", "blocks, CPU-s", "blocks / whole"]
    print_table([*columns, "whole, MiB beyond inputs", "blocks, MiB", "times less"], table)


if __name__ == "__main__":
    sys.exit(main())
