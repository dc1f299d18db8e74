"""`pyimgano check GOOD NEW`: from a folder of good photos to an answer about new ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..threads import limited_threads
from .console import Bar, images_in, plain, print_document, print_error, print_text
from .options import bit_depth_option, max_pixels_option, num_threads_option

if TYPE_CHECKING:
    from ..inference.kept import Kept
    from ..runs import InferenceRecord

#: The folder that a check makes its own folder in, unless --output-dir names it.
CHECKS = Path("checks")
# Rows of the table, and names of files of one kind, that are printed; the files have all.
_ROWS, _NAMED = 20, 10

_EXAMPLE = """
\b
  pyimgano check photos/good photos/new
  pyimgano check photos/good photos/new/0001.png photos/new/0002.png
"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"""Learn from photos of good parts and judge new ones.

{_EXAMPLE}

GOOD is a folder that holds photos of good parts alone, also in folders in it. NEW is a folder, a
file, a pattern or a list of paths, as for pyimgano infer.

The detector is fitted the first time and kept, so that the next check with the same good photos
begins at once. The answer is a table on stdout. A folder of its own gets report.html to look at,
results.csv for a spreadsheet, records.jsonl with all details, and a picture of each new image with
what was found.

Exit status: 0 done; 1 a new image could not be read, or there was none; 2 usage.""",
)
@click.argument("good", type=click.Path(path_type=Path, file_okay=False))
@click.argument("new", nargs=-1, required=True)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write into this folder, which must be empty or absent. Default checks/<date and time>.",
)
@click.option("--model", default="vision_patchcore", show_default=True, help="Model to fit.")
@click.option(
    "--preset", help="Settings: industrial-fast, industrial-balanced or industrial-accurate."
)
@click.option(
    "--resize",
    type=int,
    nargs=2,
    metavar="H W",
    help="Height and width that the model sees images at. By default the model chooses.",
)
@click.option(
    "--roi",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Look only at this region: a mask image, or a .json file of polygons.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="Run on auto, cpu, cuda or cuda:N."
)
@click.option(
    "--pretrained/--no-pretrained",
    default=None,
    help="Use ImageNet weights (the default), or random ones (for timing only).",
)
@click.option(
    "--overlays/--no-overlays",
    default=True,
    show_default=True,
    help="Save a picture of each new image with its map and regions.",
)
@click.option(
    "--on-error",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="With error, a new image that cannot be read makes the exit status 1; with skip it is "
    "only listed.",
)
@click.option(
    "--refit", is_flag=True, help="Fit anew, although a detector for these photos was kept."
)
@bit_depth_option
@num_threads_option
@max_pixels_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, not the table.")
def command(**given: Any) -> int:
    """Learn from photos of good parts and judge new ones."""
    from ..images import limited_pixels

    with limited_threads(given["num_threads"]), limited_pixels(given["max_pixels"]):
        return _check(given)


def _check(given: dict[str, Any]) -> int:
    from ..inference.outputs import make_folder
    from ..runs import require_empty

    began = datetime.now()
    output = given["output_dir"] or _free_folder(began)
    require_empty(output)
    good, new, root, problems = _images(given, output)
    for line in problems:
        print_error(line)
    if not new:
        print_error("there is no new image to judge")
        return 1
    make_folder(output)
    with Bar() as bar:
        kept, seconds = _detector(given, good, bar)
        for path, reason in kept.skipped[:_NAMED]:
            print_error(f"{path}: {reason}; not learned from")
        if len(kept.skipped) > _NAMED:
            print_error(f"and {len(kept.skipped) - _NAMED} more good photos could not be read")
        notes = _notes(good, new)
        for note in notes:
            print_error(f"note: {note}")
        records = _judge(given, kept, new, root, output, notes, bar)
    summary = _summary(given, kept, records, notes, problems, output)
    summary["fit"] = {"kept_before": seconds is None, "seconds": seconds}
    _write(output, records, summary)
    if given["as_json"]:
        print_document(summary)
    else:
        print_text("\n".join(_told(records, summary, _suspects(kept.detector))))
    unread = problems or (summary["unreadable"] and given["on_error"] == "error")
    return 1 if unread else 0


def _free_folder(began: datetime) -> Path:
    """Return a folder that is not there yet, named after the time."""
    name = f"{began:%Y%m%d_%H%M%S}"
    number, folder = 1, CHECKS / name
    while folder.exists():
        number += 1
        folder = CHECKS / f"{name}_{number}"
    return folder


def _images(
    given: dict[str, Any], output: Path
) -> tuple[list[str], list[str], str | None, list[str]]:
    """Return the good images, the new ones, the folder that overlays mirror, and what is wrong."""
    from ..inference.inputs import common_root, list_input

    good_folder = given["good"]
    results = [output, CHECKS, Path("runs")]
    folders = [Path(one) for one in given["new"] if Path(one).is_dir()]
    for folder in folders:
        if folder.resolve() == good_folder.resolve():
            raise click.UsageError(
                f"{folder}: is the folder of good photos too; give new ones that were not "
                "learned from"
            )
    good = images_in(
        good_folder, "photos of good parts", good_for="", leave_out=[*results, *folders]
    )
    paths: list[str] = []
    roots: list[str] = []
    problems: list[str] = []
    for one in given["new"]:
        listing = list_input(one, leave_out=[*results, good_folder])
        paths += listing.paths
        roots += listing.roots
        problems += listing.problems
        for note in listing.notes:
            print_error(note)
    return good, list(dict.fromkeys(paths)), common_root(roots), problems


def _detector(given: dict[str, Any], good: Sequence[str], bar: Bar) -> tuple[Kept, float | None]:
    """Return the detector that was kept for these photos, or one fitted now and the seconds it
    took.
    """
    from ..images import read_roi
    from ..inference.detectors import make_detector
    from ..inference.kept import Kept, KeptDetectors, contents_of, key_of_fit
    from ..models.detector import require_fitted

    made = make_detector(
        given["model"],
        preset=given["preset"],
        device=given["device"],
        pretrained=given["pretrained"],
        resize=given["resize"],
        roi=given["roi"],
        bit_depth=given["bit_depth"],
    )
    settings = {
        **made.get_params(),
        "model": given["model"],
        "version": __version__,
        "paths": [str(Path(path).resolve()) for path in good],
        "max_pixels": given["max_pixels"],
        "roi": None if given["roi"] is None else read_roi(given["roi"]).sha256,
    }
    key = key_of_fit(contents_of(good), settings)
    store = KeptDetectors()
    found = None if given["refit"] else store.find(key)
    if found is not None:
        print_error(f"using the detector that was kept for these {len(good)} good photos")
        return found, None
    began = time.monotonic()
    print_error(f"learning from {len(good)} good photos")
    made.fit(good, on_error="skip", progress=bar.show)
    require_fitted(made)
    # a later check may be typed in another folder
    skipped = tuple((str(Path(one.path).resolve()), one.reason) for one in made.skipped_)
    kept = Kept(made, skipped)
    store.keep(key, kept)
    return kept, round(time.monotonic() - began, 2)


def _notes(good: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return what speaks against trusting the answer, found out before there is one."""
    from ..images import strangers
    from ..inference.kept import same_files

    notes = [f"{line}; scores may show this and no defect" for line in strangers(good, new)]
    same = same_files(good, new)
    if same:
        path, other = same[0]
        notes.append(
            f"{len(same)} of {len(new)} new images are the same files, byte by byte, as good "
            f"photos that were learned from, and their verdicts say nothing; the first is {path} "
            f"(the same as {other})"
        )
    return notes


def _judge(
    given: dict[str, Any],
    kept: Kept,
    new: Sequence[str],
    root: str | None,
    output: Path,
    notes: Sequence[str],
    bar: Bar,
) -> list[InferenceRecord]:
    """Score the new images, and write what is left of each as it is made."""
    from ..calibration import promise_of
    from ..inference.detectors import bits_of
    from ..inference.outputs import Wanted
    from ..inference.records import RecordFile, as_line
    from ..inference.session import Session
    from ..pages import NewImagesPage

    maps = kept.detector.has_maps
    wanted = Wanted(
        overlays=output / "overlays" if maps and given["overlays"] else None, regions=maps
    )
    records: list[InferenceRecord] = []
    detector = kept.detector
    pixels = detector.pixel_calibration_
    page = NewImagesPage(
        output / "report.html",
        detector=f"{given['model']}, fitted on {detector.n_train_} good photos of {given['good']}",
        normal=None if pixels is None else pixels.mean,
        bit_depth=bits_of(detector),
        facts=[
            ("What this promises", promise_of(detector.calibration_)),
            *(("Warning", note) for note in (*_suspects(detector), *notes)),
        ],
    )

    def emit(record: InferenceRecord) -> None:
        file.write(as_line(record))
        records.append(record)
        bar.show("judging", len(records), len(new))

    with RecordFile(output / "records.jsonl") as file, page:
        Session(detector, wanted, emit, look=page.add, warn=print_error).score(new, root)
    return records


def _suspects(detector: Any) -> list[str]:
    """Return a sentence on the good photos that stand apart most, if there are any."""
    suspects = [one.path for one in getattr(detector, "training_suspects_", ())]
    if not suspects:
        return []
    return [
        f"Have a look at the good photos that stand apart most: {plain(', '.join(suspects[:3]))}. "
        "If one shows a bad part, take it out."
    ]


def _summary(
    given: dict[str, Any],
    kept: Kept,
    records: Sequence[InferenceRecord],
    notes: Sequence[str],
    problems: Sequence[str],
    output: Path,
) -> dict[str, Any]:
    from ..calibration import promise_of

    calibration = kept.detector.calibration_
    return {
        "schema_version": "1",
        "good": str(given["good"]),
        "new": list(given["new"]),
        "model": given["model"],
        "good_photos": kept.detector.n_train_,
        "good_photos_not_read": [{"path": p, "reason": r} for p, r in kept.skipped],
        "images": len(records),
        "defective": sum(one.pred == 1 for one in records),
        "unreadable": sum(one.error is not None for one in records),
        "threshold": calibration.threshold,
        "promise": promise_of(calibration),
        "notes": [*notes, *(f"threshold: {note}" for note in calibration.notes)],
        "suspects": [
            {"path": one.path, "reasons": list(one.reasons)}
            for one in getattr(kept.detector, "training_suspects_", ())
        ],
        "problems": list(problems),
        "output_dir": str(output),
    }


def _write(output: Path, records: Sequence[InferenceRecord], summary: dict[str, Any]) -> None:
    """Write the files of a check, from which a page to look at can be made too."""
    import json

    from ..inference.table import write_table
    from ..runs import write_text

    write_table(output / "results.csv", records)
    write_text(output / "check.json", json.dumps(summary, indent=2) + "\n")


def _told(
    records: Sequence[InferenceRecord], summary: dict[str, Any], suspects: Sequence[str]
) -> list[str]:
    """Return the answer for a person: the table, the numbers, what they are worth, where the files
    are.
    """
    from ..inference.table import verdict_of

    order = sorted(
        records,
        key=lambda one: (one.error is None, -(one.score if one.score is not None else 0.0)),
    )
    rows = [("verdict", "score/threshold", "image", "where to look (x, y, width, height)")]
    for one in order[:_ROWS]:
        where = ", ".join(map(str, one.regions[0].box)) if one.pred and one.regions else ""
        ratio = "" if one.score_ratio is None else f"{one.score_ratio:.2f}"
        rows.append((verdict_of(one), ratio, plain(one.input), where or plain(one.error or "")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(n) for cell, n in zip(row, widths)), row[3]]).rstrip()
        for row in rows
    ]
    if len(order) > _ROWS:
        lines.append(f"and {len(order) - _ROWS} more with lower scores, in results.csv")
    good = summary["images"] - summary["defective"] - summary["unreadable"]
    plural = "s" * (summary["images"] != 1)
    lines += [
        "",
        f"{summary['images']} image{plural}: {summary['defective']} defective, {good} good, "
        f"{summary['unreadable']} unreadable",
        summary["promise"],
    ]
    lines += suspects
    page = Path(summary["output_dir"]) / "report.html"
    lines.append(f"Open {plain(str(page))} to look at them; beside it lies all else")
    return lines
