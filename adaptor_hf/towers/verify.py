"""Checks presets against their real weights, on a machine that has them or can fetch them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import read_json, write_aside
from ..towers_adaptor import load_text_tower, load_vision_tower, tower_digest
from .presets import TOWER_PRESETS

TEXTS = ["No acute cardiopulmonary process.", "Small left pleural effusion with basal atelectasis."]
TOLERANCE = 1e-3


def reference_image() -> Image.Image:
    """A fixed 8-bit grey image of 300 x 260: smooth gradients and a disc, the same on every machine."""
    rows, columns = np.mgrid[0:300, 0:260]
    pixels = (rows * 3 + columns * 5) % 256
    pixels[(rows - 150) ** 2 + (columns - 130) ** 2 < 80**2] //= 2
    return Image.fromarray(pixels.astype(np.uint8))


@torch.inference_mode()
def measure_tower(name: str) -> dict[str, Any]:
    """Loads a preset's real weights and encodes the fixed input.

    Returns:
        Shapes of the outputs, SHA-256 of the weights and of the float32 embedding (the latter may differ between
        processors), its norm and first eight values, the revision and pooling in force.
    """
    if TOWER_PRESETS[name]["kind"] == "vision":
        tower = load_vision_tower(name)
        output = tower(**tower.processor(reference_image(), return_tensors="pt"))
    else:
        tower = load_text_tower(name)
        output = tower(**tower.processor(TEXTS, padding=True, return_tensors="pt"))
    embedding = output.pooler_output.float().contiguous().numpy()
    if not np.isfinite(embedding).all():
        raise ValueError(f"tower {name!r} gives NaN or infinite embeddings for the reference input.")
    return {
        "revision": tower.spec["revision"],
        "pooling": tower.spec["pooling"],
        "hidden_size": tower.spec["hidden_size"],
        "grid_shape": tower.spec["grid_shape"],
        "last_hidden_state": list(output.last_hidden_state.shape),
        "pooler_output": list(embedding.shape),
        "weights_sha256": tower_digest(tower),
        "embedding_sha256": hashlib.sha256(embedding.astype("<f4").tobytes()).hexdigest(),
        "embedding_norm": round(float(np.linalg.norm(embedding[0])), 5),
        "embedding_start": [round(float(value), 5) for value in embedding[0, :8]],
    }


def differences(measured: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What differs beyond rounding between two measurements; the embedding's digest alone counts for nothing."""
    found = []
    for key, value in stored.items():
        if key in ("embedding_norm", "embedding_start"):
            scale = max(1.0, stored["embedding_norm"])
            if not np.allclose(measured[key], value, rtol=0, atol=TOLERANCE * scale):
                found.append(f"{key}: {measured[key]} instead of {value}")
        elif key != "embedding_sha256" and measured.get(key) != value:
            found.append(f"{key}: {measured.get(key)} instead of {value}")
    return found


def verify_towers(names: list[str], output: Path) -> bool:
    """Measures presets, compares them with `output` where it has them, adds the new ones; True if all are well."""
    stored = read_json(output) if output.exists() else {}
    well = True
    for name in names:
        try:
            measured = measure_tower(name)
        except (OSError, ValueError, ImportError) as error:
            print(f"{name}: FAILED\n{error}")
            well = False
            continue
        faults = differences(measured, stored.get(name, {}))
        for key in ("hidden_size", "grid_shape"):
            promised = TOWER_PRESETS[name].get(key)
            if promised not in (None, measured[key]):
                faults.append(f"{key}: the preset says {promised}, not {measured[key]}")
        print(f"{name}: {'DIFFERS: ' + '; '.join(faults) if faults else 'ok'}  {measured['weights_sha256'][:16]}")
        well = well and not faults
        if not faults:
            stored[name] = measured
    write_aside(output, json.dumps(stored, indent=2) + "\n")
    return well
