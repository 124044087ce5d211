"""python -m constructions: verify the theorems, print their formulas, proofs, horizons, precision map and errata.

Exit status: 0 if everything asked for holds, 1 if something does not, 2 for bad input (one line on stderr).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from constructions.errors import ConstructionError
from constructions.weave import WeaveError

PARAMETERS = ("M", "H", "N", "E", "slope", "length", "convention")


class _Parser(argparse.ArgumentParser):
    """Bad input is one line on stderr, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m constructions", description="The theorems on length extrapolation, run and measured."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser("verify", help="build, run and compare with the closed forms")
    verify.add_argument("--theorem", default="all", metavar="3.1|3.2|3.3|4.1|all")
    for name, kind, help_text in (
        ("M", int, "training window, at least 2"),
        ("H", float, "threshold, any finite number"),
        ("N", int, "exact positions of the weave, 1 <= N < M"),
        ("E", int, "Stair PE's step, at least 1"),
        ("slope", float, "slope s of the PE term"),
        ("length", int, "positions to run; the default goes past the horizon where it can"),
    ):
        verify.add_argument(f"--{name}", type=kind, help=help_text)
    verify.add_argument("--dtype", default=None, metavar="float64|float32|mpmath")
    verify.add_argument("--convention", metavar="corrected|printed", help="M + 1 or M in W_V")
    verify.add_argument("--seed", type=int, default=None, help="seed of the words and of all that is arbitrary")
    kinds = verify.add_mutually_exclusive_group()
    for recovery in ("exact", "mlp", "rounded"):
        kinds.add_argument(f"--{recovery}-recovery", dest="recovery", action="store_const", const=recovery)
    verify.add_argument("--json", action="store_true")

    course = commands.add_parser("course", help="o_T at every position, as the toy transformer's weights give it")
    course.add_argument("--theorem", default="3.3", metavar="3.1|3.2|3.3|4.1")
    for name, kind in (("M", int), ("H", float), ("N", int), ("E", int), ("slope", float), ("length", int)):
        course.add_argument(f"--{name}", type=kind)
    course.add_argument("--recovery", metavar="exact|mlp|rounded")
    commands.add_parser("proofs", help="every step that sympy, or enumeration, can check")
    formulas = commands.add_parser("formulas", help="G(t), t* and ln t* in LaTeX")
    formulas.add_argument("--weave", metavar="linear|clamp|leaky|stair|grouped")
    horizons = commands.add_parser("horizons", help="where each weave's horizon ends")
    for parameter, default in (("M", 32), ("N", 4), ("E", 4)):
        horizons.add_argument(f"--{parameter}", type=int, default=default)
    horizons.add_argument("--slope", type=float, default=1.0)
    commands.add_parser("precision", help="the largest M per number type and slope")
    erratum = commands.add_parser("erratum", help="one erratum of the paper, with what shows it")
    erratum.add_argument("name")
    figures = commands.add_parser("figures", help="draw the figures of the theory page")
    figures.add_argument("--out", type=Path, default=Path("docs/figures/theory"))
    return parser


def _verify(args: argparse.Namespace) -> int:
    from constructions.toy import Parameters
    from constructions.verify import check_all, default_suite, table
    from constructions.weights import Fillers

    given: dict[str, Any] = {name: getattr(args, name) for name in PARAMETERS if getattr(args, name) is not None}
    untouched = not given and args.theorem == "all" and args.dtype is args.recovery is args.seed is None
    if untouched:
        checks = default_suite()
    else:
        seed = args.seed or 0
        recoveries = (args.recovery,) if args.recovery else ("exact", "mlp")
        chosen = Parameters(**given, fillers=Fillers(seed=seed))
        checks = check_all(args.theorem, chosen, recoveries, args.dtype or "float64", seed)
    ok = all(check.ok for check in checks)
    if args.json:
        print(json.dumps({"ok": ok, "checks": [check.record() for check in checks]}, indent=1))
    else:
        print(table(checks))
    return 0 if ok else 1


def _course(args: argparse.Namespace) -> int:
    from constructions.horizon import predicted
    from constructions.toy import Parameters, build
    from constructions.verify import check_length, measure, words

    given = {name: getattr(args, name) for name in (*PARAMETERS[:6], "recovery") if getattr(args, name) is not None}
    chosen = Parameters(**given)
    check_length(chosen.length, "float64")
    built, length = build(args.theorem, chosen), chosen.length or 4 * chosen.M
    wrote, _ = measure(built, words(built, length))
    formula = predicted(built, length)
    print(json.dumps({"H": built.H, "M": built.M, "measured": wrote.tolist(), "predicted": formula.tolist()}))
    return 0


def _proofs(args: argparse.Namespace) -> int:
    from constructions.closed_form import proofs

    steps = proofs()
    for step in steps:
        print(f"{'ok' if step.ok else 'FAILS':5} {step.how:11} {step.statement}")
    return 0 if all(step.ok for step in steps) else 1


def _formulas(args: argparse.Namespace) -> int:
    from constructions.closed_form import FORMS
    from constructions.errors import require

    require(args.weave is None or args.weave in FORMS, "weave", " | ".join(FORMS), args.weave)
    for name in [args.weave] if args.weave else FORMS:
        print(f"% {name} ({FORMS[name].how})\n{FORMS[name].latex()}\n")
    return 0


def _horizons(args: argparse.Namespace) -> int:
    from constructions.tables import horizon_table

    print(horizon_table(args.M, args.N, args.E, args.slope))
    return 0


def _precision(args: argparse.Namespace) -> int:
    from constructions.tables import precision_table

    print(precision_table())
    return 0


def _erratum(args: argparse.Namespace) -> int:
    from constructions.errata import show

    erratum = show(args.name)
    print(erratum.text())
    return 0 if erratum.ok else 1


def _figures(args: argparse.Namespace) -> int:
    from constructions.figures import draw_all

    for path in draw_all(args.out):
        print(path)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "verify": _verify,
    "course": _course,
    "proofs": _proofs,
    "formulas": _formulas,
    "horizons": _horizons,
    "precision": _precision,
    "erratum": _erratum,
    "figures": _figures,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        return COMMANDS[args.command](args)
    except (ConstructionError, WeaveError, OSError) as error:
        print(f"python -m constructions {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
