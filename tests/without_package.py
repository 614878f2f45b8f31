"""The start of a script in which `adaptor_hf` cannot be imported, as on a machine that has only a saved folder."""

WITHOUT_PACKAGE = """
import builtins, sys
real = builtins.__import__
def guard(name, *args, **kwargs):
    if name.split(".")[0] == "adaptor_hf":
        raise ModuleNotFoundError(name)
    return real(name, *args, **kwargs)
builtins.__import__ = guard
"""
