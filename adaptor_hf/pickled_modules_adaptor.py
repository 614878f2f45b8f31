"""Weights of a pickled network (`torch.save(model)`) or state dict, read without running anything that the file names.

torch reads whole networks only by importing and running what they name. Here every known class becomes an object that
does nothing but keep its state, tensors become notes of where their values lie, and any other name is refused. Both
layouts are read: the archive of torch 1.6 and later, and the one before.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import math
import os
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

import torch

from .regular_files_adaptor import open_regular, printable

# Of torch.save before 1.6, which `_use_new_zipfile_serialization=False` still writes.
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_MODULES, MAX_DEPTH = 100_000, 100
# Objects that a pickle may number; a number far above reserves memory for all below it.
MAX_NUMBERED = 10_000_000
# Containers in containers; Python itself ends where it hashes a tuple that is nested far deeper.
MAX_NESTED = 2_000
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
NETWORKS = re.compile(r"torch\.nn\.modules(\.\w+)+|torchvision\.models\.\w+|torchxrayvision\.models")
# Attributes beside the weights: their values are dropped unread.
_DROPPED = re.compile(
    r"torch\.(Size|device|(b?float|u?int)\d+|bool)|numpy\.(dtype|ndarray|\w+\d+|bool_?|str_)"
    r"|numpy\.(core|_core)\.(multiarray|numeric)\.(_reconstruct|scalar|_frombuffer)|_codecs\.encode"
)


class _Sealed(type):
    """Of classes that a pickle is handed: it may not write on them."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise ValueError("it writes on what reads it")


class _Inert(metaclass=_Sealed):
    """In the place of an object: keeps the state that it was pickled with, and does nothing."""

    def __new__(cls, *_):
        return object.__new__(cls)

    def __init__(self, *_):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict, metaclass=_Sealed):
    """An OrderedDict without attributes of its own."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    offset: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Function:
    """A function that a pickle may call, and not write on."""

    __slots__ = ("_called",)

    def __init__(self, called: Any):
        object.__setattr__(self, "_called", called)

    def __call__(self, *arguments: Any) -> Any:
        return self._called(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError("it writes on what reads it")

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it writes on what reads it")


def _rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> _Tensor:
    if metadata:
        # Such as the bit that says that all signs are turned.
        raise ValueError("a tensor has metadata, which change its numbers")
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor, *_):
    return tensor


def _reconstructor(cls, *_):
    return cls.__new__(cls) if isinstance(cls, type) and issubclass(cls, _Inert) else None


_KNOWN = {
    "collections.OrderedDict": _Dict,
    "builtins.set": set, "__builtin__.set": set,
    "builtins.object": _Inert, "__builtin__.object": _Inert,
    "copyreg._reconstructor": _Function(_reconstructor), "copy_reg._reconstructor": _Function(_reconstructor),
    "torch._utils._rebuild_tensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Function(_rebuild_parameter),
}  # fmt: skip


_NUMBERING, _NUMBERED = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")


def _check_steps(steps: list[tuple[pickletools.OpcodeInfo, Any]]) -> None:
    """
    Follow how deeply a pickle nests its objects, without making one.

    Raises:
        ValueError: too deeply, or an object has a number that reserves memory for all below it.
        IndexError: the steps are of no whole pickle.
    """
    depths: list[int | None] = []
    numbered: dict[int, int | None] = {}
    for step, argument in steps:
        if step.name in _NUMBERING:
            number = len(numbered) if argument is None else argument
            if number > MAX_NUMBERED:
                raise ValueError(f"it numbers an object {number:,}")
            numbered[number] = depths[-1]
        elif step.name in _NUMBERED:
            depths.append(numbered[argument])
        elif step.name == "MARK":
            depths.append(None)
        else:
            taken, count = [], len(step.stack_before)
            if pickletools.markobject in step.stack_before:
                while (depth := depths.pop()) is not None:
                    taken.append(depth)
                count = step.stack_before.index(pickletools.markobject)
            taken += [depths.pop() or 0 for _ in range(count)]
            # What is filled was taken last, and is as deep as what comes into it makes it.
            inside, own = (taken[:-1], taken[-1]) if step.name in _FILLING else (taken, 0)
            deepest = max(own, *(depth + 1 for depth in inside), 0)
            if deepest > MAX_NESTED:
                raise ValueError(f"it nests over {MAX_NESTED:,} objects in each other")
            depths += [deepest] * len(step.stack_after)


class _Unpickler(pickle.Unpickler):
    """Knows containers, tensors and classes of networks, each as something inert; refuses every other name."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._file = file

    def load(self) -> Any:
        start = self._file.tell()
        try:
            steps = [(step, argument) for step, argument, _ in pickletools.genops(self._file)]
        except ValueError as error:
            raise pickle.UnpicklingError(str(error)) from error
        _check_steps(steps)
        self._file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return STORAGES[name]
        if (NETWORKS.fullmatch(module) and name.isidentifier()) or _DROPPED.fullmatch(full):
            return _Inert
        raise ValueError(f"it names {full}, which is no tensor, container or layer of a network")

    def persistent_load(self, pid: Any) -> Any:
        # The layout before 1.6 keeps the source of each class beside its name; nothing reads it here.
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("it refers to an object outside of the file")
        view = pid[5] if len(pid) == 6 else None
        return _Storage(pid[1], str(pid[2]), 0 if view is None else view[1])


def read_pickled_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    The weights of a network or state dict that `torch.save` wrote, by the names of `state_dict()`.

    Args:
        path: A file of torch 0.4 or later; a state dict may also lie under the key `state_dict`.

    Returns:
        Tensors on the CPU, each with memory of its own. Buffers that a network does not keep in its state dict are
        left out.

    Raises:
        OSError: there is no such file.
        ValueError: the file names something else than tensors, containers and layers of networks (the message has the
            name; nothing of it was run), holds no weights, or is damaged.
    """
    name = os.path.basename(os.fspath(path))
    try:
        with open_regular(path) as file:
            content, storages = (_read_archive if zipfile.is_zipfile(file) else _read_legacy)(file)
        return {key: _tensor(value, storages) for key, value in _state_dict(content).items()}
    except ValueError as error:
        raise ValueError(
            f"{name} was not read: {printable(str(error))}. Nothing in it was run. Download it again; where "
            "you trust it as it is, save its state_dict() with torch.save where it can be loaded, and take that."
        ) from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, struct.error,
            zipfile.BadZipFile, RuntimeError, RecursionError, OverflowError, MemoryError) as error:  # fmt: skip
        raise ValueError(
            f"{name} is no whole file of torch.save ({type(error).__name__}). Download the file again."
        ) from error


def _read_archive(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        # Values lie as they are; a packed member could unpack to any size.
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("its archive is packed, which torch.save never does")
        names = archive.namelist()
        pickled = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickled) != 1:
            raise ValueError(f"its archive has {len(pickled)} data.pkl, expected one")
        root = pickled[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        if order != sys.byteorder.encode():
            raise ValueError("its numbers have another byte order than this machine's")
        with archive.open(pickled[0]) as content:
            found = _Unpickler(content).load()
        data = f"{root}data/"
        return found, {name.removeprefix(data): archive.read(name) for name in names if name.startswith(data)}


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    file.seek(0, os.SEEK_END)
    end = file.tell()
    file.seek(0)
    if _Unpickler(file).load() != LEGACY_MAGIC or _Unpickler(file).load() != LEGACY_PROTOCOL:
        raise ValueError("it does not begin as a file of torch.save")
    system = _Unpickler(file).load()
    if system.get("little_endian", True) != (sys.byteorder == "little"):
        raise ValueError("its numbers have another byte order than this machine's")
    unpickler = _Noting(file)
    found, storages = unpickler.load(), {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        size = count * unpickler.dtypes[str(key)].itemsize
        if not 0 <= size <= end - file.tell():
            raise ValueError("it ends before its weights do")
        storages[str(key)] = file.read(size)
    return found, storages


class _Noting(_Unpickler):
    """Also notes the type of each storage, which the older layout keeps nowhere else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}

    def persistent_load(self, pid: Any) -> Any:
        found = super().persistent_load(pid)
        if isinstance(found, _Storage):
            self.dtypes[found.key] = found.dtype
        return found


def _state_dict(content: Any) -> dict[str, _Tensor]:
    if isinstance(content, _Inert):
        found: dict[str, _Tensor] = {}
        _collect(content, "", [], found)
        if not found:
            raise ValueError("its object has no weights")
        return found
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds neither a network nor a state dict")
    if wrong := [key for key, value in content.items() if type(key) is not str or not isinstance(value, _Tensor)]:
        raise ValueError(f"it holds neither a network nor a state dict: {len(wrong)} of its entries are no tensors")
    return content


def _collect(module: _Inert, prefix: str, above: list[_Inert], found: dict[str, _Tensor]) -> int:
    """Adds the tensors of a network and of all in it to `found`; the number of its modules."""
    state = module.state
    if not isinstance(state, dict) or any(module is one for one in above) or len(above) > MAX_DEPTH:
        raise ValueError(f"the part {prefix.rstrip('.') or 'at the top'!r} of its network is none")
    left_out = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if value is None or (group == "_buffers" and name in left_out):
                continue
            if type(name) is not str or not isinstance(value, _Tensor):
                raise ValueError(f"{group} of {prefix.rstrip('.') or 'its network'} holds something else than tensors")
            found[prefix + name] = value
    count = 1
    for name, child in (state.get("_modules") or {}).items():
        if child is not None:
            if type(name) is not str or not isinstance(child, _Inert):
                raise ValueError(f"{prefix}{name} of its network is no layer")
            count += _collect(child, f"{prefix}{name}.", [*above, module], found)
        if count > MAX_MODULES:
            raise ValueError(f"its network has more than {MAX_MODULES} parts")
    return count


def _tensor(record: _Tensor, storages: dict[str, bytes]) -> torch.Tensor:
    dtype, key, start = record.storage
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor's numbers are of no known type")
    size, stride, offset = tuple(record.size), tuple(record.stride), start + record.offset
    if any(type(value) is not int or value < 0 for value in (*size, *stride, offset)) or len(size) != len(stride):
        raise ValueError("a tensor's shape is none")
    flat = storages[key]
    held, count = len(flat) // dtype.itemsize, math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count > held or (count and last >= held):
        raise ValueError("a tensor is larger than the numbers that are there")
    if not count:
        return torch.empty(size, dtype=dtype)
    values = torch.frombuffer(bytearray(flat[: held * dtype.itemsize]), dtype=dtype)
    return values.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


__all__ = ["read_pickled_weights"]
