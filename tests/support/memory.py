"""How much memory objects hold."""

import gc
import sys
import types

NOT_HELD = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType, types.CodeType)


def bytes_held(*roots: object) -> int:
    """Of all objects that can be reached from these, but not by way of code."""
    seen, left, size = set(), list(roots), 0
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, NOT_HELD):
            continue
        seen.add(id(thing))
        size += sys.getsizeof(thing)
        left += gc.get_referents(thing)
    return size
