"""What commands print: one JSON object, or tables to be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from probe.text import format_table

if TYPE_CHECKING:
    from probe.recording.folder import Run
    from probe.results import Records, Result
    from probe.schemes.presets import SchemeRow
    from probe.seam.families import Family
    from probe.studies.predictors import Scanned
    from probe.thresholds.verdicts import Verdict
    from weavescope.listing import ModelEntry

TABLE_ROWS = 40
"""Rows printed; a run over every dimension has thousands, which are all in its folder."""

TUNED_ROWS = 12
"""Candidates printed, the best first."""

CANNOT_TELL = "cannot tell"


def as_json(value: Mapping[str, Any]) -> None:
    """One object on one line; every number in it is finite."""
    print(json.dumps(value, allow_nan=False))


def _said(position: int | None, untold: str | None) -> int | str:
    """A position; "none" where there is none, and "cannot tell" where that cannot be known."""
    if position is not None:
        return position
    return "none" if untold is None else CANNOT_TELL


def summary(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Per scheme: how many dimensions predict a failure, the earliest and the median prediction, the measured one."""
    lines = []
    for scheme in dict.fromkeys(verdict.scheme for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.scheme == scheme]
        found = sorted(verdict.predicted for verdict in mine if verdict.predicted is not None)
        untold = next((verdict.unpredicted for verdict in mine if verdict.unpredicted is not None), None)
        lines.append({
            "scheme": scheme,
            "failing": f"{len(found)} of {len(mine)} {'layers' if mine[0].dim is None else 'dims'}",
            "earliest": _said(found[0] if found else None, untold),
            "median": _said(found[len(found) // 2] if found else None, untold),
            "measured": _said(mine[0].measured, mine[0].unmeasured),
        })  # fmt: skip
    return lines


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Why something cannot be told, each reason once, with the schemes that it holds for."""
    found: dict[str, list[str]] = {}
    for verdict in verdicts:
        for what, why in (("predicted", verdict.unpredicted), ("measured", verdict.unmeasured)):
            if why is not None:
                found.setdefault(f"{what}: {why}", []).append(verdict.scheme)
    return [f"cannot tell ({', '.join(dict.fromkeys(schemes))}) {line}" for line, schemes in found.items()]


def run(run: Run, json_only: bool) -> None:
    """A run's verdicts, and where its folder is."""
    from probe.results import Result
    from probe.thresholds.verdicts import read_verdicts

    info, verdicts = run.info, read_verdicts(run)
    if info.input.length <= info.window:
        print(f"probe: note: {info.input.length} tokens do not reach past the window of {info.window}", file=sys.stderr)
    first = str(info.input.notes.get("first", ""))
    if first.startswith("missing"):
        print(f"probe: warning: first token {first}", file=sys.stderr)
    if json_only:
        as_json({"run": str(run.path), **Result("run", info.settings(), info.provenance, verdicts).to_json()})
        return
    print(
        f"model {info.model}, window M = {info.window}, {info.input.length} tokens of {info.input.spec}, "
        f"detector {info.detector}\n"
    )
    rows = [
        row
        | {
            "dim": "all as one" if row["dim"] is None else row["dim"],
            "predicted": _said(row["predicted"], row["unpredicted"]),
            "measured": _said(row["measured"], row["unmeasured"]),
        }
        for row in verdicts[:TABLE_ROWS].to_json()
    ]
    columns = ("scheme", "site", "layer", "dim", "threshold", "direction", "margin", "predicted", "measured")
    print(format_table(rows, columns))
    if len(verdicts) > TABLE_ROWS:
        print(f"... and {len(verdicts) - TABLE_ROWS} more in {run.path / 'thresholds.parquet'}")
    print()
    print(format_table(summary(verdicts), ("scheme", "failing", "earliest", "median", "measured")))
    print(
        "\npredicted: the hidden state lastingly crosses its threshold; "
        "measured: the likelihood leaves its in-window band"
    )
    for line in reasons(verdicts):
        print(line)
    _intervals(run)
    if info.local_layers:
        shown = ", ".join(map(str, info.local_layers))
        print(
            f"local by design, left as trained under every scheme: layers {shown} (their sliding window is at most M; "
            "--weave-local lets schemes act there)"
        )
    figure = run.path / "figure.html"
    print(f"figure:  {figure if figure.exists() else 'none: plotly is not installed'}\nrun:     {run.path}")


def _intervals(run: Run) -> None:
    """How sure the measured failures are, of a run over several samples."""
    from probe.thresholds.intervals import failure_interval

    if not run.nll_samples:
        return
    said = {scheme: failure_interval(run, scheme).said for scheme in run.info.shown}
    told = ", ".join(f"{scheme} {text}" for scheme, text in said.items() if text is not None)
    print(f"measured, 95% over {run.info.input.samples} samples: {told or 'none fails'}")


def reproduced(changed: Sequence[str], rows: Sequence[Any], json_only: bool) -> None:
    """What came out differently when a run was made once more, a row per scheme."""
    if json_only:
        as_json({"changed": list(changed), "rows": [asdict(row) for row in rows]})
        return
    print("made with the same" if not changed else "changed since: " + "; ".join(changed))
    print(format_table([asdict(row) for row in rows], ("scheme", "values", "nll", "verdicts", "of")))
    same = all(row.values == 0 and not row.nll > 0 for row in rows)
    print("\nvalues: largest difference over the largest magnitude of a place; nll: largest, nats")
    print("the same to the bit" if same else "every verdict is alike" if all(row.alike for row in rows)
          else "some verdicts differ")  # fmt: skip


def evaluation(result: Result[Any], json_only: bool) -> None:
    """Scores, a row per length and scheme."""
    if json_only:
        as_json(result.to_json())
        return
    from probe.tasks.tables import parts

    for part in parts(result.to_json()):
        chosen, rows = part["settings"], part["rows"]
        unit = f" (lengths in {chosen['unit']})" if chosen.get("unit", "tokens") != "tokens" else ""
        print(
            f"model {chosen['model']}, window M = {chosen['window']}, task {chosen['task']}, "
            f"{chosen['samples']} samples per length, seed {chosen['seed']}{unit}\n"
        )
        hidden = ("model", "task", "weave", "hits", "each")
        told = [name for name in rows[0] if name not in hidden and any(row[name] is not None for row in rows)]
        if "recall" in told and all(row["recall"] == row["accuracy"] for row in rows):
            told.remove("recall")
        print(format_table(rows, told))
        print()


def audit(result: Result[Any], json_only: bool) -> None:
    """Lost shares of attention, a row per chunk width, layer and head."""
    if json_only:
        as_json(result.to_json())
        return
    chosen = result.settings
    print(
        f"model {chosen['model']}, {chosen['samples']} inputs of {chosen['length']} tokens ({chosen['input']}), "
        f"chunk 0 of {chosen['first']} tokens, seed {chosen['seed']}\n"
        "lost: share of the attention that chunked prefill would not see; uniform: that of a uniform attention\n"
    )
    print(format_table(result.rows.to_json(), ("chunk", "layer", "head", "lost", "lost_early", "uniform")))


def causes(result: Result[Any], json_only: bool) -> None:
    """Rises by cause, a row per length and scheme, and what they come to."""
    from probe.studies.causes import COPIES, GAP, KEYS, WHOLE, split
    from probe.studies.tables import rise

    if json_only:
        as_json(result.to_json())
        return
    chosen, rows = result.settings, list(result.rows)
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, {chosen['samples']} documents, the last "
        f"{chosen['tail']} tokens, seed {chosen['seed']}\n"
    )
    cells = []
    for scheme, length in dict.fromkeys((row.scheme, row.length) for row in rows):
        mine = {row.cause: row for row in rows if (row.scheme, row.length) == (scheme, length)}
        said = {cause: rise(mine.get(cause)) for cause in (GAP, COPIES, WHOLE, KEYS)}
        cells.append({"scheme": scheme, "length": length, **said})
    print(format_table(cells, ("scheme", "length", GAP, COPIES, WHOLE, KEYS)))
    print()
    longest, ran = max(chosen["lengths"]), max(chosen["measured"], default=0)
    lines = [
        {
            "scheme": one.scheme,
            "fails, predicted": CANNOT_TELL
            if one.untold is not None
            else _between(one.predicted, one.predicted_at, longest),
            "fails, measured": _between(one.measured, one.measured_at, ran) if ran else "not run",
            "due to distances": "" if one.distances is None else f"{one.distances:.0%}",
        }
        for one in split(rows, chosen["window"])
    ]
    print(format_table(lines, ("scheme", "fails, predicted", "fails, measured", "due to distances")))
    if ran:
        _agreement(rows, chosen["window"])
    print(
        f"\nrises in nats per token [95% interval]; a failure is above {chosen['floor']:g} with its whole interval\n"
        f"predicted: from passes no longer than the window; {WHOLE}: the long input; {KEYS}: with no distance beyond M"
    )
    for scheme, cause, why in dict.fromkeys((row.scheme, row.cause, row.untold) for row in rows if row.untold):
        print(f"cannot tell ({scheme}, {cause}): {why}")


def frequencies(result: Result[Any], json_only: bool) -> None:
    """What each group of frequencies does, a row per scheme and group."""
    from probe.studies.tables import rise

    if json_only:
        as_json(result.to_json())
        return
    chosen, rows = result.settings, list(result.rows)
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, standing for {chosen['length']} tokens, "
        f"{chosen['samples']} documents, the last {chosen['tail']} tokens, seed {chosen['seed']}\n"
    )

    cells = []
    for scheme, first, last in dict.fromkeys((row.scheme, row.first, row.last) for row in rows if row.what != "whole"):
        mine = {row.what: row for row in rows if (row.scheme, row.first, row.last) == (scheme, first, last)}
        cells.append({
            "scheme": scheme, "frequencies": f"{first} to {last}" if last > first else str(first),
            "turns in M": f"{next(iter(mine.values())).turns:.3g}",
            "it alone": rise(mine.get("alone")), "all but it": rise(mine.get("spared")),
        })  # fmt: skip
    print(format_table(cells, ("scheme", "frequencies", "turns in M", "it alone", "all but it")))
    for row in rows:
        if row.what == "whole":
            print(f"\nall frequencies under {row.scheme}: {rise(row)}")
    print(
        "\nrises in nats per token [95% interval], from passes no longer than the window; 0 is the fastest frequency\n"
        "it alone: only this group sees unseen distances; all but it: this group's angles are put back"
    )


def signals(rows: Sequence[Any], json_only: bool) -> None:
    """A row per signal."""
    cells = [{"signal": row.name, "of": row.counts, "what it is": row.help} for row in rows]
    if json_only:
        as_json({"signals": [{"name": row.name, "of": row.counts, "help": row.help} for row in rows]})
        return
    print(format_table(cells, ("signal", "of", "what it is")))


def scan(result: Result[Any], json_only: bool) -> None:
    """A row per pair, and what tells the failing ones best."""
    from probe.studies.predictors import Scanned
    from probe.studies.tables import SCAN_TITLES, scan_cells

    if json_only:
        as_json(result.to_json())
        return
    chosen, rows = result.settings, list(result.rows)
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, input {chosen['input']}, {chosen['samples']} texts, "
        f"the last {chosen['tail']} tokens, seed {chosen['seed']}\n"
    )
    cells = [dict(zip(SCAN_TITLES, line, strict=True)) for line in scan_cells(rows, chosen["window"])]
    print(format_table(cells, SCAN_TITLES))
    _best_scores(Scanned.read(result.to_json()))
    units = getattr(result, "units", ())[:TUNED_ROWS]
    if units:
        said = [
            {"signal": one.signal, "layer": one.layer or "output", "unit": one.unit, "AUROC": f"{one.auroc:.3f}"}
            for one in units
        ]
        print(f"\nsingle units that tell best, of the long passes:\n{format_table(said, tuple(said[0]))}")
    print(
        "\nrises in nats per token [95% interval]; a failure is above "
        f"{chosen['floor']:g} with its whole interval\n"
        "predicted: from passes no longer than the window; the best of many scores on one model is no evidence: see "
        "'probe study'"
    )


def _best_scores(scanned: Scanned) -> None:
    """What orders this scan's pairs best, or why there is no order."""
    from probe.studies.predictors import orders

    failing, found = sum(row.fails for row in scanned.rows), orders(scanned)
    if not found:
        print(f"\n{'all' if failing else 'no'} pairs fail, so that no score can tell them apart")
        return
    cells = [
        {"kind": kind, "score": name, "AUROC": f"{value:.3f}", "pairs": pairs}
        for kind, name, value, pairs in found[:TUNED_ROWS]
    ]
    print(f"\nof {len(scanned.rows)} pairs {failing} fail; what orders them best:")
    print(format_table(cells, ("kind", "score", "AUROC", "pairs")))


def patching(result: Result[Any], json_only: bool) -> None:
    """A row per patch and layer, and what it brought back."""
    from probe.studies.tables import PATCH_TITLES, patch_cells

    if json_only:
        as_json(result.to_json())
        return
    chosen = result.settings
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, {chosen['length']} tokens of {chosen['input']}, "
        f"{chosen['samples']} texts, the last {chosen['tail']} tokens, seed {chosen['seed']}\n"
    )
    cells = [dict(zip(PATCH_TITLES, line, strict=True)) for line in patch_cells(list(result.rows))]
    print(format_table(cells, PATCH_TITLES))
    print(
        "\nrises in nats per token [95% interval] over the trained model inside its window; recovered: share of the "
        "rise that is\ngone; changed: what was added to hidden vectors past the window, by root mean square"
    )
    for why in dict.fromkeys(row.untold for row in result.rows if row.untold):
        print(f"cannot tell: {why}")


def leads(result: Result[Any], json_only: bool) -> None:
    """Per scheme where its likelihood fails and which detectors say so, the earliest first; then all schemes as one."""
    from probe.studies.leads import TRUTH
    from probe.studies.tables import LEAD_TITLES, lead_cells

    if json_only:
        as_json(result.to_json())
        return
    chosen, rows = result.settings, list(result.rows)
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, {chosen['samples']} texts of {chosen['length']} "
        f"tokens of {chosen['input']}, seed {chosen['seed']}"
    )
    for scheme in dict.fromkeys(row.scheme for row in rows):
        mine = [row for row in rows if row.scheme == scheme]
        spoke = sorted((row for row in mine if row.signal != TRUTH and row.position is not None),
                       key=lambda row: row.position)  # fmt: skip
        quiet = len(mine) - 1 - len(spoke)
        cells = [dict(zip(LEAD_TITLES, line, strict=True)) for line in lead_cells([mine[0], *spoke[:TUNED_ROWS]])]
        print(f"\n{scheme}\n{format_table(cells, LEAD_TITLES)}")
        more = f"{len(spoke) - TUNED_ROWS} more speak later, " if len(spoke) > TUNED_ROWS else ""
        print(f"{more}{quiet} say nothing up to {chosen['length']}")
        for why in dict.fromkeys(row.untold for row in mine if row.untold):
            print(f"cannot tell: {why}")
    table = _summary_table([result.to_json()])
    if table:
        print(f"\nall schemes\n{table}")
    print(
        "\npositions and leads with 95% intervals over texts drawn again; the likelihood fails where it is lastingly "
        f"more than\n{chosen['floor']:g} nats above the trained model's under a context cut to its window"
    )
    for why in dict.fromkeys(row.no_interval for row in rows if row.no_interval):
        print(f"no interval: {why}")


def positional(result: Result[Any], json_only: bool) -> None:
    """A row per scheme and layer."""
    from probe.studies.tables import POSITIONAL_TITLES, positional_cells

    if json_only:
        as_json(result.to_json())
        return
    chosen = result.settings
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, {chosen['samples']} texts of {chosen['length']} "
        f"tokens of {chosen['input']}, seed {chosen['seed']}\n"
    )
    cells = [dict(zip(POSITIONAL_TITLES, line, strict=True)) for line in positional_cells(list(result.rows))]
    print(format_table(cells, POSITIONAL_TITLES))
    print(
        "\nshare of the variance of a layer's output [95% over texts]: position is what all texts share there, "
        "text what a\ntext shares at all positions; the rest is what stands there"
    )


def precision(result: Result[Any], json_only: bool) -> None:
    """A row per scheme and number type."""
    from probe.studies.tables import PRECISION_TITLES, precision_cells

    if json_only:
        as_json(result.to_json())
        return
    chosen = result.settings
    angles = "float64" if chosen["exact_angles"] else "float32, as the stock model's"
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, {chosen['length']} tokens of {chosen['input']}, seed "
        f"{chosen['seed']}, angles in {angles}\n"
    )
    cells = [dict(zip(PRECISION_TITLES, line, strict=True)) for line in precision_cells(list(result.rows))]
    print(format_table(cells, PRECISION_TITLES))
    print(
        "\nbeside the same rounded weights in float64, angles too: error is the root mean square of the last layer's "
        "output,\nrelative; nats what the next token's log-probability differs by; stock is the model as transformers "
        "runs it"
    )


def _summary_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Empty where no truth can be told."""
    from probe.studies.leads import lead_summaries
    from probe.studies.tables import SUMMARY_TITLES, lead_summary_cells

    found = lead_summary_cells(lead_summaries(results))
    lines = [dict(zip(SUMMARY_TITLES, line, strict=True)) for line in found]
    return format_table(lines, SUMMARY_TITLES) if lines else ""


def lead_summary(results: Sequence[Mapping[str, Any]], json_only: bool) -> None:
    """Signals and detectors over several results."""
    from dataclasses import asdict

    from probe.studies.leads import lead_summaries

    if json_only:
        as_json({"summaries": [asdict(one) for one in lead_summaries(results)]})
        return
    models = dict.fromkeys(str(result["settings"]["model"]) for result in results)
    print(f"{len(results)} results of {', '.join(models)}\n\n{_summary_table(results)}")


def study(result: Result[Any], json_only: bool) -> None:
    """A row per score over all scans: the chosen ones, controls and what orders best."""
    from probe.studies.tables import CALIBRATION_TITLES, STUDY_TITLES, calibration_cells, study_cells

    if json_only:
        as_json(result.to_json())
        return
    chosen = result.settings
    print(
        f"{len(chosen['models'])} models, inputs {', '.join(chosen['inputs'])}, {chosen['pairs']} pairs of scheme and "
        f"length, {chosen['failing']} of them fail" + (" by pass keys" if chosen.get("truth") == "keys" else "") + "\n"
    )
    cells = [dict(zip(STUDY_TITLES, line, strict=True)) for line in study_cells(result.rows)]
    print(format_table(cells, STUDY_TITLES))
    print(
        "\ninside: from passes no longer than the window; long: from the long pass; control: ought to do worse\n"
        "chosen: the score that is best on the other models; every threshold is from the other models"
    )
    lines = [
        dict(zip(CALIBRATION_TITLES, line, strict=True))
        for line in calibration_cells(getattr(result, "calibration", ()))
    ]
    if lines:
        print("\nthe probability of failure that the other models give, and what failed:\n")
        print(format_table(lines, CALIBRATION_TITLES))


def tuning(result: Result[Any], json_only: bool) -> None:
    """The candidates, the best first, and what to paste."""
    if json_only:
        as_json(result.to_json())
        return
    chosen, rows = result.settings, list(result.rows)
    print(
        f"model {chosen['model']}, window M = {chosen['window']}, for {chosen['length']} tokens; screened with "
        f"up to {chosen['screened']} prompts of {chosen['short']} tokens, seed {chosen['seed']}\n"
    )
    shown = [row for row in rows if row.left_out is None]
    cells = [
        {
            "scheme": row.scheme, "prompts": row.screened, "keys, predicted": f"{row.keys:.0%}",
            "answer, nats": f"{row.answer:.2f}", "rise, predicted": f"{row.rise:.2f}",
            "keys found": "not checked" if row.correct is None
            else f"{row.correct} of {row.total} [{row.low:.0%}, {row.high:.0%}]",
            "nats per token": "not checked" if row.nll is None else f"{row.nll:.2f}",
        }
        for row in shown[:TUNED_ROWS]
    ]  # fmt: skip
    print(format_table(cells, tuple(cells[0]) if cells else ("scheme",)))
    if len(shown) > TUNED_ROWS:
        print(f"... and {len(shown) - TUNED_ROWS} more that were screened")
    for row in rows:
        if row.left_out is not None:
            print(f"left out: {row.scheme}: {row.left_out}")
    print(
        "\npredicted: from prompts inside the window, the key moved away as far as at that length, or the filler "
        "counted as often;\nkeys found, nats per token: at that length, 95% intervals; all keys were asked of what is "
        "proposed, a few\nof those that it beat by them, unless the budget ended before"
    )
    _against(rows)
    if chosen["proposed"] is None:
        print("nothing was checked, so nothing is proposed; give a larger --budget")
    else:
        print(f"\nuse {chosen['proposed']}:\n")
        print("import weavescope as ws")
        print(f"m = ws.load({chosen['model']!r})")
        print(f"with m.under({chosen['proposed']!r}):")
        print("    print(m.generate(prompt, max_new_tokens=64))")


def _against(rows: Sequence[Any]) -> None:
    """How the screening went, where the whole grid was checked too."""
    from probe.studies.tune import against_grid

    found = against_grid(rows)
    if found is not None:
        print(
            f"\nthe whole grid was checked: its best finds {found.best_keys:.0%} of the keys at {found.best_nll:.2f} "
            "nats;\n"
            f"of the {found.finalists} that screening puts first the one proposed finds {found.keys:.0%} at "
            f"{found.nll:.2f}, and finding it takes {found.cost:.0%} of the grid's time"
        )


def _agreement(rows: Sequence[Any], window: int) -> None:
    """How the predictions went with what was measured."""
    from probe.studies.causes import agreement

    found = agreement(rows, window)
    order = "" if found.auroc is None else f", AUROC {found.auroc:.2f}"
    print(
        f"\nof {found.pairs} pairs of scheme and length {found.failing} fail, {found.hits} of them predicted"
        f"; false alarms: {found.false_alarms} of {found.pairs - found.failing}{order}"
        + ("" if found.median_octaves is None else f", length off by {found.median_octaves:.2f} octaves (median)")
        + (f" ({found.untold} more could not be predicted)" if found.untold else "")
    )


def _between(found: tuple[int, int] | None, at: int | None, longest: int) -> str:
    if found is None:
        return f"none up to {longest}"
    return f"{found[0]} to {found[1]}" + ("" if at is None else f", about {at}")


def generation(result: Result[Any], json_only: bool) -> None:
    """What each scheme wrote, a row per scheme, and its text in full below."""
    if json_only:
        as_json(result.to_json())
        return
    chosen = result.settings
    print(f"model {chosen['model']}, window M = {chosen['window']}, {chosen['length']} tokens of {chosen['input']}\n")
    cells = [
        {
            "scheme": row.scheme,
            "prefill": f"{row.prefill_seconds:.2f} s",
            "per token": "one token only" if row.step_seconds is None else f"{1000 * row.step_seconds:.1f} ms",
            "peak memory": f"{row.peak_bytes / 1e6:.0f} MB",
            "chunks": len(row.borders) or "none",
        }
        for row in result.rows
    ]
    print(format_table(cells, ("scheme", "prefill", "per token", "peak memory", "chunks")))
    for row in result.rows:
        print(f"\n{row.scheme}: {row.tokens if row.text is None else row.text!r}")
    print("\npeak memory: above the loaded model, cache included")


def bench(result: Result[Any], json_only: bool) -> None:
    """A benchmark as a Markdown table; a line on stderr warns of every unsteady row."""
    from probe.bench.rows import warnings
    from probe.bench.tables import markdown

    for line in warnings(result.rows):
        print(f"probe: warning: {line}", file=sys.stderr)
    if json_only:
        as_json(result.to_json())
    else:
        print(markdown(result.to_json()))


def peers(result: Result[Any], json_only: bool) -> None:
    """A comparison with others' code as a Markdown table."""
    from probe.peers.tables import markdown

    if json_only:
        as_json(result.to_json())
    else:
        print(markdown(result.to_json()))


def models(rows: Records[ModelEntry], families: Mapping[str, Family], json_only: bool) -> None:
    """Models that load by a name, and the families of which others can be loaded."""
    if json_only:
        positions = {name: row.positions for name, row in families.items()}
        as_json({"models": [asdict(row) for row in rows], "families": list(families), "family_positions": positions})
        return
    cells = [
        asdict(row)
        | {"here": f"{row.megabytes:g} MB" if row.here else "not yet", "folder": row.folder if row.here else ""}
        for row in rows
    ]
    print(format_table(cells, ("name", "positions", "window", "here", "licence", "summary", "folder")))
    print("\nAny local folder, GGUF file or hub id of these families works too, by how positions enter:")
    loadable = [row for row in families.values() if row.head]
    for how in dict.fromkeys(row.positions for row in loadable):
        print(f"  {how}: {', '.join(row.name for row in loadable if row.positions == how)}")


def schemes(window: int, presets: Sequence[SchemeRow], options: Sequence[SchemeRow], json_only: bool) -> None:
    """Schemes and options, with the defaults that they have for a window."""
    from probe.schemes.presets import shown

    named, after = (
        [
            {"name": row.name, "rule": row.summary, "parameters": row.defaults(window), "source": row.source}
            for row in table
        ]
        for table in (presets, options)
    )
    if json_only:
        as_json({"window": window, "schemes": named, "extras": [row["name"] for row in after], "options": after})
        return

    def table(rows: Sequence[dict[str, Any]]) -> str:
        given = [", ".join(f"{key}={shown(value)}" for key, value in row["parameters"].items()) or None for row in rows]
        cells = [row | {"parameters": text} for row, text in zip(rows, given, strict=True)]
        return format_table(cells, ("name", "parameters", "rule", "source"))

    print(table(named))
    print(f"\nafter a '+':\n{table(after)}")
    print(
        f"\ndefaults for a window of {window}; override with name(N=64,E=8), add parts with name+logn, "
        "or another scheme's choices with stair+yarn"
    )
