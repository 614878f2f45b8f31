"""
GPU memory of a training step, by arithmetic: what the backward pass keeps of each pair, measured, and what is fixed.

    python benchmarks/bench_activations.py

What autograd saves is counted by its hooks, each storage once and parameters left out; half precision by autocast. The
table is for one device of two, whose similarity matrix has this device's pairs as rows and all pairs as columns.
"""

import torch
from measure import arguments, one_thread, print_table

from adaptor_hf import AdaptorConfig, AdaptorModel

WIDTHS = {"ViT-B or ResNet-AE and BERT, 768/768": (768, 768), "DINOv2-S and BERT, 384/768": (384, 768)}
GIB = 2**30


def saved_bytes(model: AdaptorModel, rows: int, half: bool) -> int:
    """Bytes that the forward pass keeps for the backward pass, without parameters and inputs."""
    config = model.config
    inputs = {
        "image_embeds": torch.randn(rows, config.vision_hidden_size),
        "text_embeds": torch.randn(rows, config.text_hidden_size),
    }
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *inputs.values()]}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        outputs = model(**inputs, return_logits=False)
    del outputs
    return sum(storages.values())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 1024, 8192], help="Pairs a device.")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--dataset_pairs", type=int, default=277_110)
    options = parser.parse_args()
    one_thread()
    print("\n### Memory of a training step on one device\n")
    rows = []
    for name, (vision, text) in WIDTHS.items():
        model = AdaptorModel(AdaptorConfig(vision_hidden_size=vision, text_hidden_size=text)).train()
        # Weights, gradients and two moments in float32; autocast's half-precision copies of the weights.
        parameters = model.num_parameters()
        data = options.dataset_pairs * (vision + text) * 2
        for half in (False, True):
            # The part that grows with the rows: casts of the weights do not.
            few, many = (saved_bytes(model, count, half) for count in (64, 192))
            a_pair = (many - few) / 128
            fixed = parameters * (16 + (2 if half else 0))
            for pairs in options.pairs:
                # Two directions; logits, their exponential, its gradient and a mask of bytes.
                logits = 2 * pairs * (pairs * options.devices) * (3 * 4 + 1)
                blocked = pairs * options.devices >= 4096
                if blocked:
                    logits = 2 * 1024 * (pairs * options.devices) * (3 * 4 + 1)
                total = fixed + a_pair * pairs + logits + data
                rows.append(
                    [
                        name,
                        "half" if half else "float32",
                        f"{pairs:,}",
                        f"{a_pair / 1e3:.0f} kB",
                        f"{fixed / GIB:.2f}",
                        f"{a_pair * pairs / GIB:.2f}",
                        f"{logits / GIB:.2f}" + (" (blocks)" if blocked else ""),
                        f"{data / GIB:.2f}",
                        f"{total / GIB:.2f}",
                    ]
                )
    columns = ["towers", "precision", "pairs a device", "activations a pair", "weights and optimizer, GiB"]
    print_table([*columns, "activations, GiB", "similarities, GiB", "resident data, GiB", "sum, GiB"], rows)
    print(f"Resident data: {options.dataset_pairs:,} pairs in float16. The CUDA context, about 0.5 GiB, comes on top.")


if __name__ == "__main__":
    main()
