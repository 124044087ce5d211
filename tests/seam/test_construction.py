"""The theorems' toy transformers under the probe's recorder and detectors: thresholds and horizons to the exact
position.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from constructions.horizon import scan
from constructions.weave import Clamp, Stair, Weave
from probe.errors import ProbeError
from probe.models.load import load_model
from probe.recording.folder import Run
from probe.schemes import parse_scheme
from probe.seam.apply import apply_scheme
from probe.studies.run import RunSettings, run_probe
from probe.thresholds.detectors import DetectorSettings
from probe.thresholds.verdicts import read_verdicts


def probe(name: str, tmp_path: Path, length: int, schemes: str | None = None) -> Run:
    loaded = load_model(name, length=length)
    settings = RunSettings(
        schemes=schemes, length=length, detection=DetectorSettings(run_length=1),
    )  # fmt: skip
    return run_probe(loaded, settings, tmp_path / "run")


@pytest.mark.parametrize("theorem", ["3.1", "3.2"])
@pytest.mark.parametrize(("M", "H"), [(5, 0.5), (32, -2.0), (50, 10.0)])
def test_theorems_31_and_32_the_threshold_is_H_and_the_first_failure_follows_M(
    theorem: str, M: int, H: float, tmp_path: Path
) -> None:
    """o_T = H at T = M, and below it from M + 1 on."""
    row = read_verdicts(probe(f"construction:{theorem}(M={M},H={H})", tmp_path, 3 * M))[0]
    assert row.threshold == pytest.approx(H, abs=1e-6)
    assert (row.direction, row.predicted, row.measured) == ("below", M + 1, None)
    assert row.unmeasured is not None and "no vocabulary head" in row.unmeasured


@pytest.mark.parametrize(
    ("name", "weave", "M", "length"),
    [
        ("construction:3.3(M=6,N=2)", Clamp(2), 6, 600),
        ("construction:4.1(M=32,N=2,E=4)", Stair(2, 4), 32, 400),
    ],
)
def test_theorem_33_and_corollary_41_the_detector_finds_the_horizon(
    name: str, weave: Weave, M: int, length: int, tmp_path: Path
) -> None:
    """The closed form's first failing position, from G(t) alone, is where the recorded dimension crosses."""
    origin, woven = read_verdicts(probe(name, tmp_path, length))
    assert origin.predicted == M + 1
    horizon = scan(weave, M + 1, 1.0, length, "mlp").first_failure
    assert horizon is not None and M + 1 < horizon < length
    assert woven.predicted == horizon


def test_a_weave_put_in_by_the_scheme_is_the_construction_built_with_it() -> None:
    loaded = load_model("construction:4.1(M=20,N=3,E=2)", length=80)
    tokens = torch.tensor([[loaded.model.config.bos_token_id] + [1] * 79])
    built = loaded.model(tokens)
    with apply_scheme(loaded.model, parse_scheme("origin", 20)):
        plain = loaded.model(tokens)
    with apply_scheme(loaded.model, parse_scheme("stair(N=3,E=2)", 20)):
        woven = loaded.model(tokens)
    assert torch.equal(woven, built) and not torch.allclose(plain, built)
    assert torch.equal(loaded.model(tokens), built)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("construction:9", "theorem: expected 3.1"),
        ("construction:3.3(M=6,N=9)", "N: expected an integer with 1 <= N < M = 6, got 9"),
        ("construction:3.3(Q=1)", "parameters: expected M, H, N, E"),
        ("construction:3.3(M=x)", "construction:3.3(M=x)"),
        ("construction:3.3(recovery=exact)", "recovery is 'mlp'"),
        ("construction:3.1(length=600000)", "length: expected at most 16384 positions, got 600000"),
        ("construction:", "expected construction:THEOREM"),
        ("construction:3.2(M=5000)", "construction:3.2(M=5000)"),
    ],
)
def test_bad_constructions_are_answered(name: str, says: str) -> None:
    with pytest.raises(ProbeError) as caught:
        load_model(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_schemes_that_an_additive_term_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="dynamic-ntk: a construction has an additive position term"):
        probe("construction:3.3", tmp_path, 100, "origin,dynamic-ntk")
    loaded = load_model("construction:3.2(M=10)", length=50)
    with pytest.raises(ProbeError, match=r"built for at most 50 positions, got 51; say construction:3.2\(length=51\)"):
        loaded.model(torch.ones(1, 51, dtype=torch.long))
