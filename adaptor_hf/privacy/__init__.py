"""Private mode: keyed hashes of ids, and no report text, path or id in what is written or said."""

from .keys import keyed_hash, load_key

__all__ = ["keyed_hash", "load_key"]
