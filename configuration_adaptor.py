"""`AdaptorConfig` under the file name that transformers gives it: the same object as `adaptor_hf.AdaptorConfig`."""

from adaptor_hf.configuration_adaptor import AdaptorConfig

__all__ = ["AdaptorConfig"]
