"""Report of active learning: errors by round, what each found, coverage, and what stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase_biasgrad.calibration import LEVEL, Calibration
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.files import whole_file, write_whole
from ase_biasgrad.training.active.folder import LearnFolder, write_json
from ase_biasgrad.training.active.learn import Learned, validated
from ase_biasgrad.training.evaluation.committee import CommitteeReport, Coverage
from ase_biasgrad.training.evaluation.report import ACCENT, COLOUR, write_reliability


def rounds_table(rounds: list[dict[str, Any]]) -> str:
    """Rounds as a table for a terminal; errors of forces in meV/Å."""
    heading = (
        "round",
        "labels",
        "failed",
        "MAE",
        "MAE, new",
        "RMSE, new",
        "told",
        "inside",
        "unsure",
    )
    rows: list[tuple[str, ...]] = [heading]
    for r in rounds:
        new = r["new"] or {}
        stopped = sum(e["stopped"] is not None for e in r["explored"])
        rows.append(
            (
                *(str(r["round"]), str(r["labels"]), str(r["failed"]), _milli(r["force_mae"])),
                *(_milli(new.get(k)) for k in ("force_mae", "force_rmse", "expected_rmse")),
                f"{new['coverage']:.0%}" if new else "",
                f"{stopped}/{len(r['explored'])}",
            )
        )
    lines = ["".join(f"{cell:>10}" for cell in row) for row in rows]
    lines.append(
        "MAE: on validation frames; new: of the committee on frames before it was trained on them, "
        f"told: the RMSE that its spread told, inside: of its {LEVEL:.0%} intervals; unsure: "
        "explorations that met a force expected to be off by more than the limit"
    )
    return "\n".join(lines)


def _milli(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.1f}"


def write_learning_report(folder: LearnFolder, learned: Learned) -> Path:
    """Write `report/`; return it.

    It holds `summary.txt`, `summary.json`, `rounds.png`, and how far the spreads of the last
    committee can be trusted: `reliability.txt`, `reliability.json` and `reliability.png`.
    """
    path = folder.path / "report"
    path.mkdir(exist_ok=True)
    stops = [
        f"round {r['round']}: {e['name']} after {e['steps']} steps, {e['stopped']}"
        for r in learned.rounds
        for e in r["explored"]
        if e["stopped"]
    ]
    failures = [
        f"round {r.number}: structure {k}: {reason}"
        for r in folder.rounds()
        for k, reason in r.failures().items()
    ]
    parts = [f"ended because {learned.why}", rounds_table(learned.rounds)]
    parts += ["explorations that were unsure:\n" + "\n".join(stops or ["none"])]
    parts += ["structures without a label:\n" + "\n".join(failures)] if failures else []
    write_whole(path / "summary.txt", "\n\n".join(parts) + "\n")
    found_by = _found_by(folder)
    content = {"why": learned.why, "rounds": learned.rounds, "found_by": found_by}
    write_json(path / "summary.json", content)
    with whole_file(path / "rounds.png") as temporary:
        _picture(learned.rounds, found_by).savefig(temporary, format="png", dpi=120)
    last = folder.round(learned.rounds[-1]["round"])
    stored, errors = validated(last, Dataset(folder.data))
    assert isinstance(stored.calibration, Calibration)
    covered = Coverage(**stored.metadata["note"]["coverage_left_out"])
    committee = CommitteeReport(last.committee, errors, stored.calibration, covered)
    write_reliability(path, committee)
    return path


def _found_by(folder: LearnFolder) -> list[dict[str, int]]:
    """Number of structures that each kind of exploration found, by round."""
    found = []
    for each in folder.rounds():
        counts: dict[str, int] = {}
        for atoms in each.chosen():
            kind = str(atoms.info.get("found_by", "start")).partition(" from ")[0]
            counts[kind] = counts.get(kind, 0) + 1
        found.append(counts)
    return found


def _picture(rounds: list[dict[str, Any]], found_by: list[dict[str, int]]):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    (errors, stops), (kinds, cover) = figure.subplots(2, 2)
    labels = [r["labels"] for r in rounds]
    new = [r for r in rounds if r["new"]]
    fresh = [r["labels"] for r in new]
    errors.plot(
        labels, [1000 * r["force_mae"] for r in rounds], "o-", color=COLOUR, label="validation"
    )
    if new:
        known = [1000 * r["new"]["force_mae"] for r in new]
        errors.plot(fresh, known, "o-", color=ACCENT, label="new frames, before")
    errors.set(xlabel="labels", ylabel="force MAE (meV/Å)", yscale="log")
    for which in (errors.yaxis.set_major_formatter, errors.yaxis.set_minor_formatter):
        which(LogFormatter(minor_thresholds=(2, 0.5)))
    errors.legend(frameon=False)
    for k, r in enumerate(rounds):
        done = [max(e["steps"], 1) for e in r["explored"]]
        ends = [ACCENT if e["stopped"] else COLOUR for e in r["explored"]]
        stops.scatter([labels[k]] * len(done), done, c=ends, s=14)
    stops.set(xlabel="labels", ylabel="steps explored (red: unsure)", yscale="log")
    bottom = [0] * len(found_by)
    for kind in sorted({kind for counts in found_by for kind in counts}):
        heights = [counts.get(kind, 0) for counts in found_by]
        kinds.bar(range(len(found_by)), heights, bottom=bottom, label=kind)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    kinds.set(xlabel="round", ylabel="structures to label, by who found them")
    kinds.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    cover.axhline(LEVEL, color="#888888", linewidth=1)
    with_cover = [r for r in rounds if r["coverage"]]
    cover.plot(
        [r["labels"] for r in with_cover],
        [r["coverage"]["forces"] for r in with_cover],
        "o-",
        color=COLOUR,
        label="validation, left out",
    )
    if new:
        cover.plot(
            fresh, [r["new"]["coverage"] for r in new], "o-", color=ACCENT, label="new frames"
        )
    cover.set(xlabel="labels", ylabel=f"errors inside of {LEVEL:.0%} intervals", ylim=(0, 1.02))
    cover.legend(frameon=False)
    return figure
