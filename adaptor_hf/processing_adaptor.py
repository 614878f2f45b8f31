"""Processor of the Adaptor: the vision tower's image processor and the text tower's tokenizer."""

from transformers import ProcessorMixin


class AdaptorProcessor(ProcessorMixin):
    """
    `processor(images=..., text=...)` gives `pixel_values` and `input_ids` as the two towers were trained on them.

    Args:
        image_processor (`AdaptorImageProcessor`): The vision tower's, `VisionTower.processor`.
        tokenizer (`PreTrainedTokenizerBase`): The text tower's, `TextTower.processor`.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)


__all__ = ["AdaptorProcessor"]
