"""What a pickle names, read without running it: classes and settings, but no tensor's contents."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

_PROTO = b"\x80"


def is_pickle(value: Any) -> bool:
    """Whether these are the bytes of a pickle of protocol 2 or later."""
    return isinstance(value, bytes) and value[:1] == _PROTO and value[-1:] == pickle.STOP


def pickled(data: bytes) -> tuple[list[tuple[str, str]], list[Any]]:
    """(module, name) of each class and function that a pickle names, and its strings and numbers, both in order.

    Bytes, which is where tensors keep their contents, are left out.
    """
    found: list[tuple[str, str]] = []
    settings: list[Any] = []
    stack: list[Any] = []  # the latest values where they are strings, else None: STACK_GLOBAL takes the last two
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = stack[-1] if stack else None
            continue
        if name in ("BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument))
            continue
        if name in ("STACK_GLOBAL", "GLOBAL"):
            module, attribute = stack[-2:] if argument is None else argument.split(" ", 1)
            found.append((str(module), str(attribute)))
        if name not in ("PROTO", "FRAME"):
            stack.append(argument if isinstance(argument, str) and name != "GLOBAL" else None)
            if isinstance(argument, str | int | float):
                settings.append(argument)
    return list(dict.fromkeys(found)), settings
