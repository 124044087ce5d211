"""The public names and their signatures change only on purpose: `python tests/weavescope/test_public_api.py` writes
them anew.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import weavescope

METHODS = (FunctionType, classmethod, staticmethod, property, cached_property)
SNAPSHOT = Path(__file__).parent / "public_api.txt"
MODULES = ("weavescope", "weavescope.parts", "weavescope.rows")
DOCUMENTED = ("probe.recording.place", "probe.results", "weavescope.listing", "weavescope.parts", "weavescope.rows")


def signature(value: Any) -> str:
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))
    except (TypeError, ValueError):
        return ""


def members(value: type) -> list[str]:
    """Public methods and properties that the class, or a class of ours that it derives from, defines."""
    found = []
    for name in dir(value):
        defined = next((vars(base)[name] for base in value.__mro__ if name in vars(base)), None)
        ours = any(
            name in vars(base) and base.__module__.split(".")[0] in ("probe", "weavescope", "constructions")
            for base in value.__mro__
        )
        if name.startswith("_") or not ours or not isinstance(defined, METHODS):
            continue
        of = inspect.unwrap(getattr(value, name)) if callable(getattr(value, name)) else None
        kind = "" if of else f": {type(defined).__name__}"
        found.append(f"    .{name}{signature(of) if of else kind}")
    return found


def described(module: ModuleType) -> list[str]:
    lines = []
    for name in sorted(module.__all__):
        value = getattr(module, name)
        lines.append(f"{module.__name__}.{name}{signature(value) if callable(value) else ''}")
        if inspect.isclass(value):
            lines += members(value)
    return lines


def api() -> str:
    return "\n".join(line for name in MODULES for line in described(importlib.import_module(name))) + "\n"


def test_the_public_api_is_the_one_that_was_agreed() -> None:
    # In a process of its own, where no signature is wrapped for checking shapes.
    done = subprocess.run([sys.executable, __file__, "--print"], capture_output=True, text=True, check=True)
    assert done.stdout == SNAPSHOT.read_text(encoding="utf-8"), "changed on purpose? then run this file"


def test_every_public_name_says_what_it_is() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__
        for one in module.__all__:
            value = getattr(module, one)
            assert one.startswith("__") or (inspect.getdoc(value) or "").strip(), f"{name}.{one}"


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'laod'; it has .*load"):
        weavescope.laod  # noqa: B018
    assert {"load", "parts", "rows", "register"} <= set(dir(weavescope))


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, weavescope; print(sorted({'torch', 'transformers', 'numpy', 'plotly'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_in_docstrings_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0 and found.failed == 0


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(api(), end="")
    else:
        SNAPSHOT.write_text(api(), encoding="utf-8")
