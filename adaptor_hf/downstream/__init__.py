"""What a trained Adaptor is used for."""

from .zero_shot import embed_prompts, zero_shot_scores

__all__ = ["embed_prompts", "zero_shot_scores"]
