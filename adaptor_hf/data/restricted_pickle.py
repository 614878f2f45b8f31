"""Read other people's pickles without running what they name: numbers, text, containers, numpy arrays, tensors."""

from __future__ import annotations

import codecs
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import open_regular

_BUILTINS = {
    kind.__name__: kind
    for kind in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
}
_NUMPY = {
    "dtype": np.dtype,
    "ndarray": np.ndarray,
    # Arrays and scalars are rebuilt by these; they only take a dtype, a shape and bytes.
    "_reconstruct": np._core.multiarray._reconstruct,
    "scalar": np._core.multiarray.scalar,
    "_frombuffer": np._core.numeric._frombuffer,
}
_NUMPY_MODULES = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
)


class RestrictedUnpickler(pickle.Unpickler):
    """Refuses every global but builtin types, numpy arrays and numbers, `OrderedDict` and tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if module in _NUMPY_MODULES and name in _NUMPY:
            return _NUMPY[name]
        number = getattr(np, name, None) if module == "numpy" else None
        if isinstance(number, type) and issubclass(number, np.generic):
            return number
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            import torch

            return getattr(torch._utils, name)
        raise ValueError(
            f"it names {module}.{name}, which is no tensor, numpy or builtin type: loading would run that code. It was "
            "not opened. Where you trust the file, save what is in it as plain lists, dicts and arrays."
        )

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to objects outside of the file.")


def load_pickle(file: BinaryIO) -> Any:
    """
    The content of a pickle of plain data.

    Raises:
        ValueError: It names anything else than tensors, numpy and builtin types (the message names it), or is damaged.
    """
    try:
        return RestrictedUnpickler(file).load()
    except UnicodeDecodeError:
        raise ValueError("text of Python 2 that is not ASCII: its encoding is unknown.") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"no whole pickle ({type(error).__name__}: {error}). Download the file again.") from None


def load_npy(path: Path) -> np.ndarray:
    """
    An array of a .npy file; an array of objects by `load_pickle`.

    Raises:
        ValueError: As `load_pickle`, or the file is no .npy file.
    """
    with open_regular(path) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        content = load_pickle(file)
    array = content if isinstance(content, np.ndarray) else np.empty(0)
    if array.shape != shape:
        raise ValueError(f"the header says shape {shape}, the content is {type(content).__name__} {array.shape}.")
    return array


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes; other codecs (zlib, bz2) would unpack to any size."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise ValueError(f"it encodes text as {encoding}, expected latin1.")
    return text.encode("latin1")


def _load_storage(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


__all__ = ["RestrictedUnpickler", "load_npy", "load_pickle"]
