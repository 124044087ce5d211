"""Rows of the open tables: make one and `weavescope.register` it, or name a function that returns rows as an entry
point.

    [project.entry-points.weavescope]
    mine = "my_package:rows"

    >>> from weavescope import register, rows, scheme
    >>> from weavescope.parts import Clamp
    >>> twice = rows.Preset("twice", "W(d) = min(d, 2)", "made up", lambda p: {"weave": Clamp(2)})
    >>> _ = register(twice, replace=True)
    >>> scheme("twice", window=64).weave_at(100)(50, 0)
    2

A weave class is a row too.
"""

from probe.recording.sites import AttentionSite, ModuleSite
from probe.schemes.options import Option
from probe.schemes.presets import Parameter, Preset
from probe.seam.families import Family
from probe.tasks.inputs import InputKind
from probe.tasks.measure import Unit
from probe.tasks.table import Asked, Cell, Mark, Task
from probe.thresholds.detectors import Detection, Detector, DetectorSettings, Untold

__all__ = [
    "Asked",
    "AttentionSite",
    "Cell",
    "Detection",
    "Detector",
    "DetectorSettings",
    "Family",
    "InputKind",
    "Mark",
    "ModuleSite",
    "Option",
    "Parameter",
    "Preset",
    "Task",
    "Unit",
    "Untold",
]
