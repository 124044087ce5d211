"""weavescope: where a language model breaks past its training window, and what position weaving does about it.

    import weavescope as ws

    m = ws.load("rope")                                # an embedded name, a folder, a hub id
    with m.under("mesa+logn"):                         # any scheme, as text or as an object, undone afterwards
        text = m.generate("The grass is green. " * 150, max_new_tokens=8)
    run = m.probe("origin,rerope", layers="all", dims=range(20))
    run.thresholds.to_pandas()

Everything public is here, in `weavescope.parts` (what schemes are made of) and in `weavescope.rows` (rows of the open
tables, for `register`). Every other module, of `probe` and `constructions` too, may change without notice. Importing
this loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.errors import FieldError, ProbeError, UnknownNameError
    from probe.provenance import Provenance
    from probe.recording.info import RunInfo
    from probe.recording.place import Place
    from probe.results import Records, Result
    from probe.schemes import Scheme
    from probe.tables import register
    from probe.thresholds.detectors import Detection, DetectorSettings, Untold, detect
    from probe.thresholds.verdicts import Verdict
    from weavescope.listing import choices, models, scheme, schemes
    from weavescope.measuring import bench, study
    from weavescope.model import Model, load, wrap
    from weavescope.run import Run, list_runs, open_run

_HOMES = {
    "probe.errors": ("FieldError", "ProbeError", "UnknownNameError"),
    "probe.provenance": ("Provenance",),
    "probe.recording.info": ("RunInfo",),
    "probe.recording.place": ("Place",),
    "probe.results": ("Records", "Result"),
    "probe.schemes": ("Scheme",),
    "probe.tables": ("register",),
    "probe.thresholds.detectors": ("Detection", "DetectorSettings", "Untold", "detect"),
    "probe.thresholds.verdicts": ("Verdict",),
    "weavescope.listing": ("choices", "models", "scheme", "schemes"),
    "weavescope.measuring": ("bench", "study"),
    "weavescope.model": ("Model", "load", "wrap"),
    "weavescope.run": ("Run", "list_runs", "open_run"),
}
"""Where each public name is made; looked up when it is first used, since most of them need torch."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Detection",
    "DetectorSettings",
    "FieldError",
    "Model",
    "Place",
    "ProbeError",
    "Provenance",
    "Records",
    "Result",
    "Run",
    "RunInfo",
    "Scheme",
    "UnknownNameError",
    "Untold",
    "Verdict",
    "__version__",
    "bench",
    "choices",
    "detect",
    "list_runs",
    "load",
    "models",
    "open_run",
    "register",
    "scheme",
    "schemes",
    "study",
    "wrap",
]

try:
    __version__ = version("weavescope")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+checkout"


def __getattr__(name: str) -> Any:
    """A public name, or a public module, on first use."""
    if name in ("parts", "rows"):
        return import_module(f"weavescope.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'weavescope' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "parts", "rows"])
