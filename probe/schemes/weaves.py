"""The open table of weave functions: those of `constructions.weave`, and whatever others register."""

from __future__ import annotations

from constructions.weave import WEAVES as SHIPPED
from constructions.weave import Weave
from probe.tables import Table

WEAVES: Table[type[Weave]] = Table("weave", Weave, SHIPPED.values(), classes=True)
"""Weave classes by name. A row is a class with `of` (or `__call__`) and, to run fast, `parts`."""
