"""What a trained Adaptor is used for: the tasks of `adaptor_hf.evaluation.tasks.TASKS`, each in a file of its name."""

from .zero_shot import embed_prompts, zero_shot_scores

__all__ = ["embed_prompts", "zero_shot_scores"]
