"""Model cards, and the one way to the Hub."""

from .model_card import write_model_card
from .push import push_folder

__all__ = ["push_folder", "write_model_card"]
