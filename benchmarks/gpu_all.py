"""
All that needs a GPU, in one command: correctness on CUDA, the tests for a GPU, extraction, the paper's pre-training.

    python benchmarks/gpu_all.py --output benchmarks/results/gpu_CARD.json

No network, one JSON file with the card and the versions, under eight minutes. The file is written anew after each
section: a machine that is lent for too short a time leaves what is done, and says what is left out.

    correctness    the Adaptor, its loss and gradients, and the offline towers: this device against float32 on the CPU
    tests          pytest -m gpu
    extraction     ViT-B/14 and BERT-base with random weights: rows a second, of the tower alone and of a build, with
                   what a cache may keep beside the pooled vector
    pretrain       gpu_pretrain.py: 50 epochs over 277,110 pairs

--device cpu --small only shows that this works.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from bench_extraction import radiograph
from small_towers import TINY_BERT, TINY_VIT, WORDS, save_bert, save_vit

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.audit.run_record import processor_name
from adaptor_hf.embeddings.columns import Ragged
from adaptor_hf.embeddings.stored import StoredImages, StoredTexts
from adaptor_hf.training.report import package_versions

ROOT = Path(__file__).parents[1]
VIT_B14 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
BERT_BASE = VIT_B14 | {"vocab_size": 30522, "max_position_embeddings": 512}


def correctness(options: argparse.Namespace, folder: Path, limit: float) -> dict:
    """Largest differences to float32 on the CPU; `tests/test_gpu.py` has the bounds that they must keep."""
    del folder, limit
    found = adaptor_differences(options.device) | loss_differences(options.device)
    for name in ("lite0", "minilm"):
        for column, cosine in tower_cosines(name, options.device).items():
            found[f"{name}: lowest cosine of stored {column}"] = cosine
    return found


def adaptor_differences(device: str) -> dict[str, float]:
    """Outputs and gradients of an Adaptor of the paper's size on 64 pairs, by precision."""
    generator = torch.Generator().manual_seed(1)
    pairs = {name: torch.randn(64, 768, generator=generator) for name in ("image_embeds", "text_embeds")}

    def run(device: str, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        model = AdaptorModel(AdaptorConfig(vision_hidden_size=768, text_hidden_size=768)).to(device).eval()
        half = precision != torch.float32
        with torch.autocast(device, dtype=precision) if half else contextlib.nullcontext():
            output = model(**{name: value.to(device) for name, value in pairs.items()}, return_loss=True)
        output.loss.backward()
        gradients = [value.grad.float().flatten().cpu() for value in model.parameters() if value.grad is not None]
        embeds = torch.cat([output.image_embeds, output.text_embeds]).detach().float().cpu()
        return embeds, torch.cat(gradients), output.loss.detach().float().cpu()

    exact_embeds, exact_gradients, exact_loss = run("cpu", torch.float32)
    found = {}
    for name, precision in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        embeds, gradients, loss = run(device, precision)
        cosine = torch.nn.functional.cosine_similarity
        found[f"Adaptor, {name}: lowest cosine of outputs"] = cosine(embeds, exact_embeds).min().item()
        found[f"Adaptor, {name}: cosine of gradients"] = cosine(gradients, exact_gradients, dim=0).item()
        found[f"Adaptor, {name}: relative error of the loss"] = (loss / exact_loss - 1).abs().item()
    return found


def loss_differences(device: str) -> dict[str, float]:
    """The loss in blocks against the whole matrix, on the device itself, with gradients."""
    from adaptor_hf.loss_adaptor import contrastive_loss
    from adaptor_hf.objectives.chunked import chunked_cross_entropy

    generator = torch.Generator().manual_seed(2)
    image, text = (torch.randn(3000, 64, generator=generator).to(device).requires_grad_() for _ in range(2))
    scale = torch.tensor(2.6593, device=device)
    whole = contrastive_loss(image, text, scale)
    expected = torch.autograd.grad(whole, (image, text))
    unit = [torch.nn.functional.normalize(value, dim=1) for value in (image, text)]
    blocks = chunked_cross_entropy(*unit, scale.exp(), row_weight=0.75 / 3000, column_weight=0.25 / 3000)
    got = torch.autograd.grad(blocks, (image, text))
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]
    return {
        "loss in blocks: relative error": (blocks / whole - 1).abs().item(),
        "loss in blocks: relative error of gradients": max(errors),
    }


def tower_cosines(name: str, device: str) -> dict[str, float]:
    """Lowest cosine of what a build stores of 16 inputs (half precision on CUDA) to float32 on the CPU, by column."""
    from adaptor_hf.embeddings.extract import extract
    from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower

    if name == "lite0":
        tower = load_vision_tower(name)
        generator = np.random.default_rng(0)
        pictures = [generator.integers(0, 256, (224, 224, 3), np.uint8) for _ in range(16)]
        inputs, kept = dict(tower.processor(pictures, return_tensors="pt")), StoredImages(image_tokens="all")
    else:
        tower = load_text_tower(name)
        texts = [" ".join(WORDS[: 2 + row % 10]) for row in range(16)]
        inputs, kept = dict(tower.processor(texts, padding=True, return_tensors="pt")), StoredTexts(text_tokens=True)
    cpu, other = (extract(tower.to(place), inputs, kept) for place in ("cpu", device))
    found = {}
    for column, values in cpu.items():
        pair = [one.values if isinstance(one, Ragged) else one for one in (values, other[column])]
        vectors = [torch.from_numpy(one).flatten(0, -2) for one in pair]
        found[column] = torch.nn.functional.cosine_similarity(*vectors, dim=-1).min().item()
    return found


def tests(options: argparse.Namespace, folder: Path, limit: float) -> dict:
    """`pytest -m gpu`, its last line and its exit status; 5 is no test collected."""
    del options
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--basetemp={folder}/t"]
    run = subprocess.run([*command, "tests"], cwd=ROOT, capture_output=True, text=True, timeout=limit)
    return {"exit_status": run.returncode, "said": run.stdout.strip().splitlines()[-1:]}


def extraction(options: argparse.Namespace, folder: Path, limit: float) -> dict:
    """Rows a second: the tower alone on inputs that are on the device, and a whole build from files."""
    del limit
    import datasets

    from adaptor_hf.embeddings import build_cache
    from adaptor_hf.embeddings.extract import extract
    from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower

    vit = TINY_VIT if options.small else VIT_B14 | {"image_size": 224, "patch_size": 14}
    bert = TINY_BERT if options.small else BERT_BASE
    bert = {name: value for name, value in bert.items() if name != "vocab_size"}
    images, texts, batch = (16, 16, 4) if options.small else (2048, 8192, 64)
    vision = load_vision_tower(str(save_vit(folder / "vit", **vit)), device=options.device)
    text = load_text_tower(str(save_bert(folder / "bert", **bert)), device=options.device)
    side = vision.processor.crop_size["height"]
    inputs = {
        "images": (vision, {"pixel_values": torch.randn(batch, 3, side, side)}, images),
        "texts": (text, dict(text.processor([" ".join(WORDS * 6)] * batch, return_tensors="pt")), texts),
    }
    grid = 2 if options.small else 7
    forms = {
        "images": {
            "pooled": StoredImages(),
            f"{grid} x {grid} tokens": StoredImages(image_tokens=grid),
            "all tokens": StoredImages(image_tokens="all"),
            "attention": StoredImages(image_attention=True),
        },
        "texts": {"pooled": StoredTexts(), "all tokens": StoredTexts(text_tokens=True)},
    }
    found: dict[str, float] = {}
    for name, (tower, batches, rows) in inputs.items():
        for stored, kept in forms[name].items():
            extract(tower, batches, kept)
            began = time.perf_counter()
            for _ in range(rows // batch):
                extract(tower, batches, kept)
            found[f"{name} a second, the tower alone, {stored}"] = round(rows / (time.perf_counter() - began), 1)
    generator = np.random.default_rng(0)
    pictures = [radiograph(seed, 1024, 1280) for seed in range(8)]
    files = []
    for row in range(images):
        files.append(folder / f"{row}.jpg")
        # A comment after the picture makes each file another content: equal ones would be embedded once.
        files[-1].write_bytes(pictures[row % 8] + str(row).encode())
    table = datasets.Dataset.from_dict(
        {
            "image": [str(file) for file in files],
            "text": [" ".join(generator.choice(WORDS, 60)) + f" {row}" for row in range(images)],
        }
    )
    builds = (
        ("images", (vision, None), "pooled", {}),
        ("images", (vision, None), "all tokens", {"image_tokens": "all"}),
        ("texts", (None, text), "pooled", {}),
        ("texts", (None, text), "all tokens", {"text_tokens": True}),
    )
    for name, towers, stored, kept in builds:
        place = folder / f"cache-{name}"
        began = time.perf_counter()
        cache = build_cache(table, *towers, place, batch_size=batch, **kept)
        done = len(np.unique(cache.image_rows if name == "images" else cache.text_rows))
        assert done == images, f"{done} of {images} {name} were embedded"
        found[f"{name} a second, a build from files, {stored}"] = round(done / (time.perf_counter() - began), 1)
        shutil.rmtree(place)
    return found


def pretrain(options: argparse.Namespace, folder: Path, limit: float) -> dict:
    """gpu_pretrain.py; what it had written where the time ended."""
    output = folder / "pretrain.json"
    words = f"--device {options.device} --seeds 1 --output {output}"
    if options.small:
        words += " --rows 96 --held_out 32 --epochs 1 --batch 32 --naive_steps 2"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_pretrain.py"), *words.split()]
    try:
        subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True, timeout=limit)
        ended = "done"
    except subprocess.TimeoutExpired:
        ended = "cut off by the time limit"
    found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    return {"ended": ended} | {name: found[name] for name in ("options", "summary", "runs") if name in found}


SECTIONS: dict[str, Callable[[argparse.Namespace, Path, float], dict]] = {
    "correctness": correctness,
    "tests": tests,
    "extraction": extraction,
    "pretrain": pretrain,
}


def run_sections(options: argparse.Namespace) -> Iterator[dict]:
    """The report after each section. One that fails says how, and the next one runs."""
    cuda = options.device == "cuda"
    report = {
        "device": torch.cuda.get_device_name() if cuda else processor_name(),
        "memory_bytes": torch.cuda.mem_get_info()[1] if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "versions": package_versions(),
        "small": options.small,
        "sections": {},
        "left_out": list(options.sections),
    }
    end = time.monotonic() + options.minutes * 60
    for name in options.sections:
        left = end - time.monotonic()
        if left < 5:
            break
        began = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = SECTIONS[name](options, Path(folder), left)
        except subprocess.CalledProcessError as error:
            found = {"failed": error.stderr[-1500:]}
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:1500]}
        report["sections"][name] = {"seconds": round(time.perf_counter() - began, 1)} | found
        report["left_out"].remove(name)
        yield report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_all.json"))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=7.5, help="of all sections; the last one is cut off")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No GPU that this torch build can use. --device cpu --small tries the script.")
    failed = []
    for report in run_sections(options):
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        name = list(report["sections"])[-1]
        print(json.dumps({name: report["sections"][name]}, indent=1)[:2000], file=sys.stderr, flush=True)
        failed += [name] if "failed" in report["sections"][name] else []
    sys.exit(f"Failed: {', '.join(failed)}." if failed else 0)


if __name__ == "__main__":
    main()
