"""The table of a run: a verdict per (scheme, site, layer, dim), from what was recorded, without running the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.errors import unknown
from probe.thresholds.detectors import Detection, Settings, can_calibrate, detect
from probe.thresholds.measured import measured_failure

if TYPE_CHECKING:
    from probe.recording.folder import Run

REFERENCE = "origin"
"""The scheme that every threshold is calibrated on: the model as trained."""

Row = dict[str, Any]
Place = tuple[str, int, int]
"""(site, 1-based layer, 0-based dim)."""


def _number(value: float) -> float | None:
    """A JSON-safe number."""
    return float(value) if math.isfinite(value) else None


def _row(scheme: str, place: Place, detector: str, found: Detection | None, measured: int | None) -> Row:
    site, layer, dim = place
    return {
        "scheme": scheme, "site": site, "layer": layer, "dim": dim, "detector": detector,
        "threshold": _number(found.threshold) if found else None,
        "direction": found.direction if found else None,
        "predicted": found.position if found else None,
        "margin": _number(found.margin) if found else None,
        "measured": measured,
    }  # fmt: skip


def _places(trace: Mapping[str, Any], dims: Sequence[int]) -> list[Place]:
    """Every place that was recorded, in order."""
    found = [key.rpartition("/")[2].split(".") for key in trace if key.rpartition("/")[0] == REFERENCE]
    return [(site, int(layer), dim) for site, layer in found for dim in dims]


def _measured(nll: Mapping[str, NDArray[np.float64]], scheme: str, window: int, settings: Settings) -> int | None:
    # Nothing to measure in a few tokens, nor in a model that has no vocabulary head.
    if not can_calibrate(nll[REFERENCE], window, settings) or np.isnan(nll[REFERENCE][1:]).all():
        return None
    return measured_failure(nll[REFERENCE], nll[scheme], window, settings).position


def threshold_rows(
    trace: Mapping[str, NDArray[np.float32]],
    nll: Mapping[str, NDArray[np.float64]],
    dims: Sequence[int],
    shown: Sequence[str],
    window: int,
    detector: str,
    settings: Settings,
    places: Collection[Place] | None = None,
) -> list[Row]:
    """One row per (scheme, site, layer, dim): threshold, predicted and measured failure.

    Args:
        trace: recorded values, [positions, dims] by "scheme/site.layer"; `origin` must be among them.
        nll: NLL per position by scheme, nats; entry 0 is NaN.
        dims: the dimensions that the columns of `trace` are.
        shown: schemes to judge.
        window: trained window M.
        detector: of `DETECTORS`.
        settings: burn-in, run length, margin.
        places: what to judge; default everything that was recorded.

    Returns:
        Rows in order of scheme, site and layer, dim. `predicted` and `measured` are positions, or None for no failure;
        `threshold`, `direction` and `margin` are None where the detector needs input past M and there is none.

    Raises:
        ProbeError: an unknown detector, scheme or place, or a burn-in that leaves no window to calibrate on.
    """
    recorded = _places(trace, dims)
    wanted = recorded if places is None else list(places)
    for place in wanted:
        if place not in recorded:
            raise unknown("place", place, recorded)
    column = {dim: number for number, dim in enumerate(dims)}
    rows = []
    for scheme in shown:
        if scheme not in nll:
            raise unknown("scheme", scheme, nll)
        measured = _measured(nll, scheme, window, settings)
        for site, layer, dim in wanted:
            reference, series = (
                trace[f"{name}/{site}.{layer}"][:, column[dim]].astype(np.float64) for name in (REFERENCE, scheme)
            )
            found = detect(detector, reference, series, window, settings)
            rows.append(_row(scheme, (site, layer, dim), detector, found, measured))
    return rows


def rows_from_run(
    run: Run,
    detector: str,
    settings: Settings,
    *,
    schemes: Sequence[str] | None = None,
    places: Collection[Place] | None = None,
) -> list[Row]:
    """Judge a finished run anew, with any detector and settings, from its trace and its NLL.

    Args:
        run: a run folder.
        detector: of `DETECTORS`.
        settings: burn-in, run length, margin.
        schemes: of those that were run; default those that the run shows.
        places: (site, layer, dim) of those that were recorded; default all of them.

    Raises:
        ProbeError: as `threshold_rows`.
    """
    info = run.info
    shown = info["shown"] if schemes is None else schemes
    if places is None:
        # In the order of the run: a file of arrays keeps none.
        places = [(site, layer, dim) for site in info["sites"] for layer in info["layers"] for dim in info["dims"]]
    return threshold_rows(run.trace, run.nll, info["dims"], shown, info["window"], detector, settings, places)
