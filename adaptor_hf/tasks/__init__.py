"""What a trained Adaptor is used for: classification, zero-shot, retrieval, few-shot and text understanding."""

from .zero_shot import embed_prompts, zero_shot_scores

__all__ = ["embed_prompts", "zero_shot_scores"]
