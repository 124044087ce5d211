"""Set attributes on one module for a while, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def attributes(module: nn.Module, **values: Any) -> Iterator[None]:
    """Set attributes on one module; what was there before, or that there was none, comes back at the end.

    For an attribute of the class it is none: a `forward` set here hides the class's until then.
    """
    missing = object()
    before = {name: {**module.__dict__, **module._modules}.get(name, missing) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not missing:
                setattr(module, name, value)
            elif name in module.__dict__:
                delattr(module, name)
