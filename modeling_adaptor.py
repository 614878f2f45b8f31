"""The models under the file name that transformers gives them: the same objects as in `adaptor_hf`."""

from adaptor_hf.modeling_adaptor import AdaptorModel, AdaptorOutput, AdaptorPreTrainedModel

__all__ = ["AdaptorModel", "AdaptorOutput", "AdaptorPreTrainedModel"]
