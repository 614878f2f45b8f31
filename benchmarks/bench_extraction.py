"""
Extraction: arithmetic that sorting texts by length saves, the cost of reading a large JPEG, and how busy a build keeps
its tower.

    python benchmarks/bench_extraction.py --repeats 5
    python benchmarks/bench_extraction.py --against ../checkout-of-the-version-before

* Texts: lengths are log-normal (median 59 tokens, mean 69, 95 % below 147), cut to 112. A build with a tiny tower shows
  which batches it plans; torch's FlopCounterMode counts each batch on a BERT-base without weights (device "meta").
* Image: a grey JPEG of 2544 x 3056 pixels with hard-edged markers, down to 256 pixels on the shorter side.
* Build: a randomly initialised ViT-S/16 at 224 pixels, such JPEG files on disk, one process that decodes. Its rate is
  compared with the tower's alone, on pixels that are in memory, in batches of the same size.
* Against another version (with --against, which leaves out the rest): the same builds and the same reading of a cache,
  through towers so small that the work around them shows, and of large images through a ViT-S/16; each in a process of
  its own.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import arguments, interleaved, medians, one_thread, print_header, print_table
from PIL import Image, ImageDraw
from small_towers import TINY_BERT, TINY_VIT, WORDS, save_bert, save_vit

TEXT_BATCH = 64
MAX_TOKENS = 112
SIDE = 256
LARGE_IMAGES = 64
VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}


def token_lengths(rows: int) -> np.ndarray:
    """(n,) tokens of a report, special ones included, before cutting."""
    normal = np.random.default_rng(0).normal(np.log(59), 0.56, rows)
    return np.maximum(np.exp(normal).round().astype(int), 8)


def planned_shapes(folder: Path, lengths: np.ndarray) -> list[tuple[int, int]]:
    """Shapes of the batches that a build sends through its tower."""
    import datasets

    from adaptor_hf.embeddings import build_cache
    from adaptor_hf.towers_adaptor import load_text_tower

    generator = np.random.default_rng(1)
    texts = [" ".join(generator.choice(WORDS, size=length - 2)) for length in lengths]
    tower = load_text_tower(str(save_bert(folder / "bert", **TINY_BERT)))
    forward, shapes = tower.forward, []
    tower.forward = lambda **inputs: shapes.append(tuple(inputs["input_ids"].shape)) or forward(**inputs)
    cache = build_cache(
        datasets.Dataset.from_dict({"text": texts}), None, tower, folder / "texts", batch_size=TEXT_BATCH
    )
    assert cache.num_texts == len(texts), "two texts are equal: one of them was left out"
    return shapes


def bert_flops(shapes: list[tuple[int, int]]) -> int:
    """Floating-point operations of a BERT-base forward pass over batches of these shapes."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False).eval()
    known: dict[tuple[int, int], int] = {}
    for shape in set(shapes):
        tokens = torch.zeros(shape, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.zeros(shape[0], 1, shape[1], shape[1], device="meta"))
        known[shape] = counter.get_total_flops()
    return sum(known[shape] for shape in shapes)


def compare_texts(folder: Path, rows: int) -> None:
    lengths = token_lengths(rows)
    cut = np.minimum(lengths, MAX_TOKENS)
    batches = [cut[start : start + TEXT_BATCH] for start in range(0, rows, TEXT_BATCH)]
    shapes = {
        f"every text padded to {MAX_TOKENS}": [(len(batch), MAX_TOKENS) for batch in batches],
        "padded to the longest of a batch, rows in their order": [(len(batch), int(batch.max())) for batch in batches],
        "ours: sorted by length": planned_shapes(folder, lengths),
        "no padding at all": [(1, int(length)) for length in cut],
    }
    flops = {name: bert_flops(planned) for name, planned in shapes.items()}
    most = max(flops.values())
    print(f"\n### FLOPs of BERT-base over {rows} texts in batches of {TEXT_BATCH}\n")
    high = np.quantile(lengths, 0.95)
    print(f"Tokens before cutting: median {np.median(lengths):.0f}, mean {lengths.mean():.0f}, 95 % below {high:.0f}.")
    print("Gate: 1.6 times fewer than the first row, aim 1.75.\n")
    print_table(
        ["padding", "GFLOP a text", "times fewer"],
        [[name, f"{value / rows / 1e9:.2f}", f"{most / value:.2f}"] for name, value in flops.items()],
    )


def radiograph(seed: int = 0, width: int = 2544, height: int = 3056) -> bytes:
    """A grey JPEG: smooth shapes, a little noise, and white letters and bars with hard edges."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot(rows / height - generator.uniform(0.4, 0.6), columns / width - generator.uniform(0.4, 0.6))
    pixels = 210 * np.exp(-3 * distance) + generator.normal(0, 3, (height, width))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.text((150, 150), "L", fill=255, font_size=260)
    draw.rectangle((width - 400, 200, width - 150, 260), fill=255)
    draw.rectangle((width - 420, height - 700, width - 400, height - 200), fill=0)
    for x in range(200, 1200, 37):
        draw.line((x, height - 300, x, height - 200), fill=255, width=3)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=92)
    return encoded.getvalue()


def compare_reading(repeats: int) -> None:
    from adaptor_hf.data.images import read_image

    data = radiograph()
    height = round(SIDE * 3056 / 2544)

    def plain() -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, height), Image.Resampling.BICUBIC)

    def ours() -> Image.Image:
        return read_image(data, min_size=3 * SIDE).resize((SIDE, height), Image.Resampling.BICUBIC)

    def whole() -> Image.Image:
        return read_image(data).resize((SIDE, height), Image.Resampling.BICUBIC)

    baseline = "decoded whole, to RGB, then resized"
    variants = {baseline: plain, "read_image, whole": whole, "ours: read_image(min_size=768)": ours}
    exact = np.asarray(plain(), dtype=int)[:, :, 0]
    off = {name: np.abs(np.asarray(run().convert("L"), dtype=int) - exact) for name, run in variants.items()}
    median = medians(interleaved({name: lambda run=run: run() and None for name, run in variants.items()}, repeats))
    print_header(
        f"Reading a grey JPEG of 2544 x 3056 ({len(data) / 1e6:.1f} MB) down to {SIDE} pixels", baseline, repeats
    )
    print("Gate: 2.5 times less, aim 3.5; at most 2 of 255 grey levels off.\n")
    rows = [
        [name, f"{1e3 * value:.0f}", f"{median[baseline] / value:.2f}", off[name].max(), f"{off[name].mean():.3f}"]
        for name, value in median.items()
    ]
    print_table(["path", "CPU-ms", "times less", "most grey levels off", "mean"], rows)


def compare_build(folder: Path, rows: int, repeats: int) -> None:
    import datasets

    from adaptor_hf.embeddings import build_cache
    from adaptor_hf.embeddings.extract import extract
    from adaptor_hf.embeddings.stored import StoredImages
    from adaptor_hf.towers_adaptor import load_vision_tower

    tower = load_vision_tower(str(save_vit(folder / "vit", image_size=224, patch_size=16, **VIT_S)))
    batch = 4
    pixels = torch.randn(batch, 3, 224, 224)
    pictures = [radiograph(seed) for seed in range(8)]
    files = []
    for row in range(rows):
        files.append(folder / f"{row}.jpg")
        files[-1].write_bytes(pictures[row % len(pictures)])
    table = datasets.Dataset.from_dict({"image": [str(file) for file in files]})
    extract(tower, {"pixel_values": pixels}, StoredImages())

    def alone() -> None:
        for _ in range(0, rows, batch):
            extract(tower, {"pixel_values": pixels}, StoredImages())

    builds = iter(range(1000))

    def build(workers: int) -> None:
        cache_dir = folder / f"cache-{next(builds)}"
        build_cache(table, tower, None, cache_dir, batch_size=batch, num_workers=workers)

    variants = {
        "the tower alone": alone,
        "build, one process decodes": lambda: build(1),
        "build, decoding in the same process": lambda: build(0),
    }
    names = list(variants)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for offset in range(len(names)):
            name = names[(turn + offset) % len(names)]
            began, used = time.perf_counter(), time.process_time()
            variants[name]()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
    print_header(f"A build of {rows} images through ViT-S/16 at 224, batch {batch}", names[0], repeats)
    print(
        "CPU of the process that runs the tower; what it uses beyond the tower's own is lost to the tower. Gate: 85 %."
    )
    print("The rate by the clock means something on an idle machine only.\n")
    cpus, walls = medians(cpu), medians(wall)

    def share(spent: dict[str, float], name: str) -> str:
        return f"{100 * spent[names[0]] / spent[name]:.0f} %"

    print_table(
        ["", "images a CPU-second", "of the tower's rate", "images a second", "of the tower's rate"],
        [
            [name] + [cell for spent in (cpus, walls) for cell in (f"{rows / spent[name]:.2f}", share(spent, name))]
            for name in names
        ],
    )


def compare_versions(folder: Path, against: Path, images: int, texts: int, repeats: int) -> None:
    """Rows a CPU-second of this version and of the one in the checkout `against`."""
    import datasets

    from adaptor_hf.embeddings import import_embeddings

    save_vit(folder / "tower_of_build_images", **TINY_VIT)
    save_vit(folder / "tower_of_build_large_images", image_size=224, patch_size=16, **VIT_S)
    save_bert(folder / "tower_of_build_texts", **TINY_BERT)
    generator = np.random.default_rng(0)
    picture = radiograph(0, 64, 64)
    files = []
    for row in range(images):
        files.append(folder / f"{row}.jpg")
        # A comment after the picture makes each file another content: equal ones would be embedded once.
        files[-1].write_bytes(picture + str(row).encode())
    datasets.Dataset.from_dict({"image": [str(file) for file in files]}).save_to_disk(folder / "build_images")
    pictures, large = [radiograph(seed) for seed in range(8)], []
    for row in range(LARGE_IMAGES):
        large.append(folder / f"large-{row}.jpg")
        large[-1].write_bytes(pictures[row % 8] + str(row).encode())
    datasets.Dataset.from_dict({"image": [str(file) for file in large]}).save_to_disk(folder / "build_large_images")
    words = [
        " ".join(generator.choice(WORDS, size=length)) + f" {row}" for row, length in enumerate(token_lengths(texts))
    ]
    datasets.Dataset.from_dict({"text": words}).save_to_disk(folder / "build_texts")
    vectors = [generator.normal(size=(50_000, 768)).astype(np.float16) for _ in range(2)]
    import_embeddings(*vectors, cache_dir=folder / "prepared")
    versions = {"the version before": against, "this version": Path(__file__).parents[1]}
    spent: dict[tuple[str, str], list[dict]] = {}
    works = ("build_images", "build_texts", "build_large_images", "read")
    for turn in range(repeats):
        names = list(versions)[:: 1 if turn % 2 else -1]
        for work in works:
            for name in names:
                command = [sys.executable, str(Path(__file__).with_name("cache_once.py")), str(folder), work]
                environment = os.environ | {"PYTHONPATH": str(versions[name])}
                run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                spent.setdefault((work, name), []).append(json.loads(run.stdout.splitlines()[-1]))
        print(f"\rround {turn + 1} of {repeats}", end="", file=sys.stderr, flush=True)
    before, now = versions
    title = (
        f"Builds of {images} small images and {texts} texts through tiny towers, of {LARGE_IMAGES} large images through"
    )
    print_header(f"{title} ViT-S/16, and reading 200,000 rows", before, repeats)
    rows = []
    for work in works:
        rate = {name: np.median([run["rows"] / run["cpu_seconds"] for run in spent[work, name]]) for name in versions}
        ratios = [
            new["rows"] / new["cpu_seconds"] / (old["rows"] / old["cpu_seconds"])
            for old, new in zip(spent[work, before], spent[work, now], strict=True)
        ]
        memory = {name: np.median([run["peak_megabytes"] for run in spent[work, name]]) for name in versions}
        rows.append([
            work.replace("_", " "), f"{rate[before]:,.0f}", f"{rate[now]:,.0f}",
            f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{memory[before]:.0f}",
            f"{memory[now]:.0f}",
        ])  # fmt: skip
    columns = ["", "rows a CPU-second before", "now", "ratio, median (range)", "peak MB before", "now"]
    print_table(columns, rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--against", type=Path, help="checkout of another version to compare builds and reading with")
    parser.add_argument("--texts", type=int, default=8192)
    parser.add_argument("--images", type=int, default=96)
    options = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as name:
        if options.against is not None:
            compare_versions(Path(name), options.against.resolve(), 4096, options.texts, options.repeats)
            return
        compare_texts(Path(name), options.texts)
        compare_reading(options.repeats)
        compare_build(Path(name), options.images, options.repeats)


if __name__ == "__main__":
    main()
