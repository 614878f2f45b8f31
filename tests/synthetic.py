"""A cache of correlated synthetic embeddings: pairs share a latent code, some rows share a text."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.embeddings import EmbeddingCache, import_embeddings

VISION_WIDTH, TEXT_WIDTH = 20, 28


def synthetic_cache(folder: Path, num_rows: int = 160, num_texts: int = 120, seed: int = 0, noise: float = 0.3):
    """Rows of 2 images a patient; the last texts are used by several images; splits 70/15/15 by patient."""
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(num_texts, 8))
    text_of_row = np.arange(num_rows) % num_texts
    image = latent[text_of_row] @ generator.normal(size=(8, VISION_WIDTH))
    image += noise * generator.normal(size=image.shape)
    text = (latent @ generator.normal(size=(8, TEXT_WIDTH)))[text_of_row]
    patient = text_of_row // 2
    share = patient / patient.max()
    table = Dataset.from_dict(
        {
            "image_id": [f"image-{row}" for row in range(num_rows)],
            "patient_id": [f"patient-{code}" for code in patient],
            "study_id": [f"study-{code}" for code in patient],
            "text": [f"report number {code}" for code in text_of_row],
            "split": ["train" if s < 0.7 else "validation" if s < 0.85 else "test" for s in share],
        }
    )
    return import_embeddings(
        image=image.astype(np.float32), text=text.astype(np.float32), table=table, cache_dir=folder, dtype="float16"
    )


def synthetic_config(cache: EmbeddingCache | None = None, **kwargs) -> AdaptorConfig:
    defaults = {
        "vision_hidden_size": VISION_WIDTH,
        "text_hidden_size": TEXT_WIDTH,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if cache is not None:
        defaults |= {"vision_tower": cache.vision_spec, "text_tower": cache.text_spec}
    return AdaptorConfig(**(defaults | kwargs))


def synthetic_model(seed: int = 0, **kwargs) -> AdaptorModel:
    import torch

    torch.manual_seed(seed)
    return AdaptorModel(synthetic_config(**kwargs))
