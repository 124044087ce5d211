"""The verification itself: what it reports, that it can fail, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import mpmath
import pytest

from constructions.__main__ import main
from constructions.errata import ERRATA
from constructions.toy import Parameters, build
from constructions.verify import RECORD, check, check_all, check_theorem
from constructions.weave import Clamp, Linear, Stair
from constructions.weights import BOS, ONE, RESERVED, STATE, Construction


@pytest.mark.parametrize("theorem", ["3.1", "3.2", "3.3", "4.1"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "mpmath"])
@pytest.mark.parametrize("recovery", ["exact", "mlp", "rounded"])
def test_every_theorem_verifies(theorem, dtype, recovery):
    p = Parameters(M=7, N=2, E=3, recovery=recovery, length=40)
    result = check_theorem(theorem, p, dtype)
    assert result.ok, result.problems


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("M", "N", "E", "H", "slope"), [(2, 1, 2, 0.0, 1.0), (9, 8, 5, -3.5, 0.5), (40, 5, 2, 100.0, 0.2)]
)
def test_every_theorem_verifies_over_sizes_and_seeds(M, N, E, H, slope, seed):
    p = Parameters(M=M, N=N, E=E, H=H, slope=slope, length=2 * M + 20)
    for result in check_all("all", p, ("exact", "mlp"), seed=seed):
        assert result.ok, result.problems


# Mutations --------------------------------------------------------------------------------------------------------

EMBEDDING = [("embedding", slice(1, None), ONE), ("embedding", 0, ONE), ("embedding", 0, BOS)]
HEADS = [
    (0, "v", (BOS, 0)),
    (0, "o", (0, STATE)),
    (1, "q", (ONE, 1)),
    (1, "k", (STATE, 1)),
    (1, "v", (BOS, 0)),
    (1, "v", (ONE, 1)),
    (1, "o", (0, STATE)),
    (1, "o", (1, STATE)),
    (1, "o", (0, STATE + 1)),
]
UNWANTED = [(0, "k", (BOS, 0)), (0, "v", (RESERVED, 0)), (1, "k", (RESERVED, 0)), (1, "v", (RESERVED, 1))]
MLP = [("w_in", STATE, unit) for unit in range(11)] + [("w_out", unit, STATE) for unit in range(11)]


def mutated(built: Construction, layer: int, **changes) -> Construction:
    layers = list(built.weights.layers)
    layers[layer] = replace(layers[layer], **changes)
    return replace(built, weights=replace(built.weights, layers=tuple(layers)))


def with_head(built: Construction, layer: int, name: str, index, change) -> Construction:
    first, *others = built.weights.layers[layer].heads
    array = getattr(first, name).copy()
    array[index] = change(array[index])
    return mutated(built, layer, heads=(replace(first, **{name: array}), *others))


@pytest.fixture(scope="module")
def sound() -> Construction:
    built = build("3.2", Parameters(M=8))
    assert check(built, length=24).ok
    return built


@pytest.mark.parametrize(("layer", "name", "index"), HEADS)
def test_verification_fails_if_a_weight_of_a_head_is_off_by_a_thousandth(sound, layer, name, index):
    assert not check(with_head(sound, layer, name, index, lambda w: w * mpmath.mpf("1.001")), length=24).ok


@pytest.mark.parametrize(("layer", "name", "index"), UNWANTED)
def test_verification_fails_if_a_head_reads_what_it_should_not(sound, layer, name, index):
    assert not check(with_head(sound, layer, name, index, lambda w: w + mpmath.mpf("0.001")), length=24).ok


@pytest.mark.parametrize(("name", "row", "column"), MLP)
def test_verification_fails_if_a_weight_of_the_mlp_is_off_by_a_thousandth(sound, name, row, column):
    mlp = sound.weights.layers[0].mlp
    array = getattr(mlp, name).copy()
    assert array[row, column] != 0
    array[row, column] *= mpmath.mpf("1.001")
    assert not check(mutated(sound, 0, mlp=replace(mlp, **{name: array})), length=24).ok


@pytest.mark.parametrize(("name", "row", "column"), EMBEDDING)
def test_verification_fails_if_the_embedding_is_off_by_a_thousandth(sound, name, row, column):
    embedding = sound.weights.embedding.copy()
    embedding[row, column] *= mpmath.mpf("1.001")
    assert not check(replace(sound, weights=replace(sound.weights, embedding=embedding)), length=24).ok


def test_verification_fails_if_another_head_writes_to_a_named_dimension(sound):
    heads = list(sound.weights.layers[1].heads)
    o = heads[1].o.copy()
    o[0, STATE] = mpmath.mpf("0.001")
    heads[1] = replace(heads[1], o=o)
    assert not check(mutated(sound, 1, heads=tuple(heads)), length=24).ok


@pytest.mark.parametrize("weave", [Clamp(2), Stair(2, 2)])
def test_verification_of_theorem_32_fails_under_a_weave(sound, weave):
    assert not check(replace(sound, weave=weave), length=24).ok


def test_verification_of_theorem_33_fails_without_a_weave():
    built = build("3.3", Parameters(M=8, N=2, length=60))
    result = check(replace(built, weave=Linear()), length=60)
    assert not result.ok
    assert "just past M" in " ".join(result.problems)


@pytest.mark.parametrize(("name", "index"), [("q", (STATE, 0)), ("k", (ONE, 0))])
def test_the_query_of_layer_2_need_not_know_its_position(sound, name, index):
    """The proof's q.k = c + (t - i) holds s t too, which is one constant per query: softmax drops it."""
    assert check(with_head(sound, 1, name, index, lambda w: 0 * w), length=24).ok


def test_verification_fails_for_a_wrong_value_of_bos(sound):
    assert not check(replace(sound, value=sound.value + 1), length=24).ok


def test_verification_fails_for_stair_with_e_equal_1():
    assert not check_theorem("4.1", Parameters(M=8, N=4, E=1, recovery="exact")).ok


# The command line -------------------------------------------------------------------------------------------------


def run(capsys, *argv: str) -> tuple[int, str, str]:
    try:
        status = main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_json_has_the_documented_shape(capsys):
    status, out, _ = run(capsys, "verify", "--M", "6", "--N", "2", "--json")
    answer = json.loads(out)
    assert status == 0
    assert set(answer) == {"ok", "checks"}
    assert answer["ok"] is True
    keys = "theorem M H N E slope dtype recovery max_deviation first_failure horizon ok"
    assert all(tuple(c) == RECORD == tuple(keys.split()) for c in answer["checks"])
    by_name = {(c["theorem"], c["recovery"]): c for c in answer["checks"]}
    assert set(by_name) == {("3.1", None), ("3.2", None), *((n, r) for n in ("3.3", "4.1") for r in ("exact", "mlp"))}
    assert by_name["3.2", None]["first_failure"] == by_name["3.2", None]["horizon"] == 6
    assert by_name["3.3", "mlp"]["first_failure"] == by_name["3.3", "mlp"]["horizon"] == 521
    assert by_name["3.1", None]["N"] is None


@pytest.mark.parametrize(("flag", "recoveries"), [("--exact-recovery", ["exact"]), ("--mlp-recovery", ["mlp"])])
def test_recovery_flags_choose_the_mlp(capsys, flag, recoveries):
    _, out, _ = run(capsys, "verify", "--theorem", "3.3", "--M", "6", "--N", "2", flag, "--json")
    assert [c["recovery"] for c in json.loads(out)["checks"]] == recoveries


def test_a_statement_that_does_not_hold_gives_status_1_and_says_why(capsys):
    status, out, _ = run(capsys, "verify", "--theorem", "4.1", "--M", "8", "--E", "1", "--exact-recovery")
    assert status == 1
    assert "does not extend the horizon" in out


def test_the_table_names_the_index_convention(capsys):
    _, out, _ = run(capsys, "verify", "--theorem", "3.1", "--M", "5", "--convention", "printed")
    assert "Index convention: printed" in out
    assert "o_T > H iff T < M - 1" in out


BAD = [
    (["--M", "1"], "M: expected an integer >= 2, got 1"),
    (["--M", "x"], "invalid int value: 'x'"),
    (["--theorem", "3.3", "--M", "4", "--N", "4"], "N: expected an integer with 1 <= N < M = 4, got 4"),
    (["--N", "0"], "N: expected"),
    (["--E", "0"], "E: expected an integer >= 1, got 0"),
    (["--H", "nan"], "H: expected a finite number, got nan"),
    (["--H", "inf"], "H: expected a finite number, got inf"),
    (["--H", "1e30"], "use a smaller |H| or mpmath"),
    (["--slope", "0"], "slope: expected a number from 1e-09 to 1000, got 0.0"),
    (["--slope", "nan"], "slope: expected"),
    (["--length", "1"], "length: expected from 2 to 20000 positions in float64, got 1"),
    (["--length", "0"], "length: expected from 2 to 20000 positions in float64, got 0"),
    (["--length", "-5"], "length: expected from 2 to 20000 positions in float64, got -5"),
    (["--dtype", "float16"], "dtype: expected float64 | float32 | mpmath, got float16"),
    (["--theorem", "9"], "theorem: expected"),
    (["--convention", "mine"], "convention: expected"),
    (["--seed", "-1"], "seed: expected"),
    (["--M", "2000"], "largest M: 706); use slope 0.35 or less, or dtype mpmath"),
    (["--M", "100", "--dtype", "float32"], "dtype float64"),
    (["--theorem", "4.1", "--length", "5000"], "length = 5000 is past the precision of float64"),
    (["--theorem", "3.1", "--M", "30000"], "length: expected from 2 to 20000 positions in float64, got 30002"),
    (["--dtype", "mpmath", "--length", "500"], "length: expected from 2 to 400 positions in mpmath, got 500"),
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["--exact-recovery", "--mlp-recovery"], "not allowed with"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_bad_input_gives_one_line_and_status_2(capsys, argv, message):
    status, out, err = run(capsys, "verify", *argv)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["erratum"], ["erratum", "x"], ["formulas", "--weave", "x"], ["horizons", "--E", "0"]]
)
def test_bad_commands_give_one_line_and_status_2(capsys, argv):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ERRATA)
def test_every_erratum_holds(capsys, name):
    status, out, _ = run(capsys, "erratum", name)
    assert status == 0
    assert "printed:" in out and "correction:" in out and "shown:" in out


def test_proofs_formulas_horizons_and_precision_print(capsys):
    assert run(capsys, "proofs")[0] == 0
    assert "t^* = 2 N" in run(capsys, "formulas", "--weave", "clamp")[1]
    assert "1,585 / 1,585" in run(capsys, "horizons")[1]
    assert "| 706 " in run(capsys, "precision")[1]


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "constructions", "verify", "--theorem", "3.1", "--M", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "python -m constructions verify: M: expected an integer >= 2, got 0\n"
