"""`pyimgano-infer`: a detector from somewhere, images from somewhere, a record for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..threads import limited_threads
from .caller import current_caller
from .console import (
    ALLOW_WEIGHTS,
    Bar,
    for_people,
    images_in,
    parse_keywords,
    plain,
    print_error,
    print_text,
)
from .infer_usage import (
    SidesCommand,
    check_usage,
    output_folders,
    sides,
    take_checkpoint,
    wants_detector_of_caller,
)
from .options import (
    SharedOption,
    bit_depth_option,
    calibration_tail_option,
    checkpoint_option,
    json_option,
    max_pixels_option,
    num_threads_option,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..inference.outputs import Wanted
    from ..inference.records import RecordFile
    from ..inference.scoring import AnyScorer
    from ..pages import NewImagesPage
    from ..runs import InferenceRecord

_FOLDER = click.Path(path_type=Path, file_okay=False)
#: Unreadable images named on stderr; all of them have a record.
_NAMED = 20


@click.command(cls=SidesCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--from-run", type=_FOLDER, metavar="RUN", help="Use the detector that a run kept.")
@click.option("--category", metavar="C", help="Category of the run, where it has several.")
@click.option("--model-dir", type=_FOLDER, help="Use a saved detector.")
@click.option(
    "--product",
    metavar="NAME",
    help="Product of all images, for a detector of many products. By default each is recognised.",
)
@click.option(
    "--product-from-folder",
    is_flag=True,
    help="Take the name of the folder that an image lies in as the name of its product.",
)
@checkpoint_option("a saved model (a folder), or")
@click.option("--train-dir", type=_FOLDER, help="Fit a detector on the good images of this folder.")
@click.option("--model", help="Model to fit. Default vision_patchcore.")
@click.option("--preset", cls=SharedOption)
@click.option("--contamination", cls=SharedOption, type=float)
@click.option("--pretrained/--no-pretrained", cls=SharedOption, default=None)
@click.option("--model-kwargs", cls=SharedOption, metavar="JSON")
@click.option("--resize", cls=SharedOption, type=int, nargs=2, metavar="H W")
@click.option("--roi", cls=SharedOption, type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--save-model",
    type=_FOLDER,
    help="Save the detector that was fitted, or calibrated with --calibrate-on, in this folder.",
)
@click.option("--device", cls=SharedOption, default="cpu", show_default=True)
@click.option("--allow-outside", is_flag=True, help=ALLOW_WEIGHTS)
@click.option(
    "--calibrate-on",
    type=_FOLDER,
    help="Calibrate the threshold on these good images, which the detector was not fitted on.",
)
@click.option("--calibration-quantile", cls=SharedOption, type=float)
@calibration_tail_option
@click.option(
    "--threshold",
    type=float,
    help="Decide by this threshold instead of the detector's, for this call only.",
)
@click.option(
    "--tile-size", callback=sides, metavar="N|H W", help="Score large images by tiles of this size."
)
@click.option(
    "--tile-stride",
    callback=sides,
    metavar="N|H W",
    help="Step between tiles. Default three quarters of a tile.",
)
@click.option(
    "--tile-score-reduce",
    type=click.Choice(["max", "mean", "topk_mean"]),
    help="How the score of an image follows from its tiles. Default max, as a small defect "
    "lies in few tiles.",
)
@click.option(
    "--tile-score-topk",
    type=float,
    metavar="SHARE",
    help="Share of the tiles that topk_mean averages, in (0, 1]. Default 0.1.",
)
@click.option(
    "--tile-map-reduce",
    type=click.Choice(["triangle", "hann", "gaussian", "mean", "max"]),
    help="How maps are blended where tiles overlap. Default triangle.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    help="Score this file, folder, pattern (*, **) or list of paths (@list or .txt), or - for "
    "paths on stdin; repeatable.",
)
@click.argument("more_inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--watch", type=_FOLDER, help="Score the images of this folder as they arrive.")
@click.option(
    "--watch-interval",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Look into the watched folder every so many seconds.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Take a file as complete after so many seconds without a change.",
)
@click.option("--only-new", is_flag=True, help="Ignore what is already in the watched folder.")
@click.option(
    "--stop-when-idle",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop watching after so many seconds without a new file.",
)
@click.option(
    "--save-jsonl",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the records to this file too; with --watch, append, and skip images that have a "
    "record in it.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page of the images, the worst first, with maps and decisions; with --watch it is "
    "kept up to date.",
)
@json_option
@click.option("--quiet", is_flag=True, help="Print no records on stdout.")
@click.option(
    "--include-maps", is_flag=True, help="Put the shape, peak and mean of each map into its record."
)
@click.option(
    "--save-maps", type=_FOLDER, help="Save the anomaly map of each image in this folder."
)
@click.option(
    "--map-format",
    type=click.Choice(["tiff", "npy"]),
    help="Save maps as tiff (16-bit float, default) or npy.",
)
@click.option(
    "--map-size",
    type=click.Choice(["original", "working"]),
    help="Save maps at the size of the image (default) or of the model.",
)
@click.option(
    "--save-overlays", type=_FOLDER, help="Save a picture of each image with its map and regions."
)
@click.option(
    "--save-masks",
    type=_FOLDER,
    help="Save the defective pixels of each image as a PNG of 0 and 255.",
)
@click.option(
    "--postprocess",
    is_flag=True,
    help="Scale each map that is saved or described to 0 to 1, by itself. Scores and regions stay "
    "as they are.",
)
@click.option("--regions", is_flag=True, help="List the defective regions in the records.")
@click.option(
    "--pixel-threshold", type=float, help="Threshold of regions and masks. Default the detector's."
)
@click.option(
    "--min-area",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Leave out regions of fewer pixels of the image.",
)
@click.option(
    "--on-error",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="With error, an unreadable training image ends the command and an unreadable input makes "
    "the exit status 1; with skip, both are left out and listed, and the status is 0.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Score so many images, or tiles, together."
)
@bit_depth_option
@num_threads_option
@max_pixels_option
def command(**given: Any) -> int:
    """Score images with a fitted detector, and decide on each.

    \b
      pyimgano infer --model-dir models/lid photos/new --save-jsonl records.jsonl
      pyimgano infer --train-dir photos/good photos/new --save-overlays overlays
      pyimgano infer --model-dir models/lid --watch camera1 --save-jsonl camera1.jsonl

    A terminal shows a line for each image; elsewhere, and with --json, stdout has one JSON record a
    line.

    The detector comes from --from-run, --model-dir, or --train-dir, which fits one on good
    images first. Progress and warnings go to stderr.

    Exit status: 0 done; 1 an image could not be read (see --on-error), or an input matched
    nothing; 2 usage.
    """
    given["inputs"] = [*given["inputs"], *given.pop("more_inputs")]
    take_checkpoint(given)
    check_usage(given)
    from ..images import limited_pixels

    with limited_threads(given["num_threads"]), limited_pixels(given["max_pixels"]):
        records = _open_outputs(given)
        problems: list[str] = []
        paths, root = _list_inputs(given, problems)
        with Bar() as bar:
            detector = _detector(given, paths, bar)
        return _score(given, detector, paths, root, problems, records)


def _open_outputs(given: dict[str, Any]) -> RecordFile | None:
    """Make the folders, and look over the file of records if watching is to go on after it.

    What is wrong with them is found out before a detector is fitted.
    """
    from ..inference.outputs import make_folder
    from ..inference.records import RecordFile

    for folder in output_folders(given):
        make_folder(folder)
    if given["watch"] is None or given["save_jsonl"] is None:
        return None
    return RecordFile(given["save_jsonl"], keep=True)


def _list_inputs(given: dict[str, Any], problems: list[str]) -> tuple[list[str], str | None]:
    """List the images of all inputs but stdin, and the folder that outputs mirror."""
    from ..inference.inputs import common_root, list_input

    paths: list[str] = []
    roots: list[str] = []
    for one in given["inputs"]:
        if one == "-":
            roots.append(str(Path.cwd()))
            continue
        listing = list_input(one, leave_out=output_folders(given))
        paths += listing.paths
        roots += listing.roots
        for line in (*listing.problems, *listing.notes):
            print_error(line)
        problems += listing.problems
    return paths, common_root(roots)


def _wanted(given: dict[str, Any]) -> Wanted:
    from ..inference.outputs import Wanted

    if given["postprocess"]:
        from ..postprocess.anomaly_map import AnomalyMapPostprocess
    return Wanted(
        maps=given["save_maps"],
        overlays=given["save_overlays"],
        masks=given["save_masks"],
        map_format=given["map_format"] or current_caller().map_format,
        map_size=given["map_size"] or "original",
        describe_maps=given["include_maps"],
        regions=given["regions"],
        min_area=given["min_area"],
        postprocess=AnomalyMapPostprocess(normalize=True) if given["postprocess"] else None,
    )


def _detector(given: dict[str, Any], paths: Sequence[str], bar: Bar) -> AnyScorer:
    """Load or fit the detector, tile and calibrate it as is asked, and print what is to be known.

    `paths` are the images that it is to score, as far as they are known.
    """
    from ..calibration import DEFAULT_QUANTILE, DEFAULT_TAIL
    from ..images import strangers
    from ..inference import calibrate_threshold
    from ..inference.detectors import (
        make_detector,
        open_detector,
        require_bit_depth,
        tiled,
    )
    from ..inference.scoring import require_maps
    from ..models.detector import OnError, require_fitted
    from ..models.saved import require_place
    from ..models.saving import require_saveable
    from ..models.tiled import TiledDetector

    detector: AnyScorer
    judge: Any
    fitting = given["train_dir"] is not None
    caller = current_caller()
    rules = {name: given[f"tile_{name}"] for name in ("score_reduce", "score_topk", "map_reduce")}
    if fitting or wants_detector_of_caller(given):
        detector = make_detector(
            given["model"] or "vision_patchcore",
            preset=given["preset"],
            device=given["device"],
            pretrained=given["pretrained"],
            contamination=given["contamination"],
            resize=given["resize"],
            calibration_quantile=given["calibration_quantile"],
            calibration_tail=given["calibration_tail"],
            roi=given["roi"],
            bit_depth=given["bit_depth"],
            model_kwargs=parse_keywords(given["model_kwargs"]),
            tile_size=given["tile_size"],
            tile_stride=given["tile_stride"],
            tile_rules=rules,
            create=caller.create_model,
        )
    else:
        detector = open_detector(
            model_dir=given["model_dir"],
            run_dir=given["from_run"],
            category=given["category"],
            device=given["device"],
            allow_outside=given["allow_outside"],
        )
        require_bit_depth(detector, given["bit_depth"])
        detector = tiled(detector, given["tile_size"], given["tile_stride"], rules)
    # what is calibrated, which is the detector of one product
    judge = _of_product(detector, given)
    if given["save_model"] is not None:
        require_saveable(judge.detector if isinstance(judge, TiledDetector) else judge)
        require_place(given["save_model"])
    if _wanted(given).needs_maps:
        require_maps(detector)
    good = None
    if given["calibrate_on"] is not None:
        good = images_in(
            given["calibrate_on"], "good images to calibrate on", good_for="--calibrate-on"
        )
    skip: OnError = "skip" if given["on_error"] == "skip" else "raise"
    if fitting:
        images = images_in(given["train_dir"], "good training images", good_for="--train-dir")
        for note in strangers(images, paths):
            print_error(f"note: {note}; scores may show this and no defect")
        judge.fit(images, calibration_images=good, on_error=skip, progress=bar.show)
        skipped = getattr(judge, "skipped_", [])
        for one in skipped[:_NAMED]:
            print_error(f"{one.path}: {one.reason}; left out of the {one.role} images")
        if len(skipped) > _NAMED:
            print_error(f"and {len(skipped) - _NAMED} more good images that could not be read")
    elif good is not None:
        quantile = given["calibration_quantile"]
        calibrate_threshold(
            judge,
            good,
            quantile=DEFAULT_QUANTILE if quantile is None else quantile,
            tail=given["calibration_tail"] or DEFAULT_TAIL,
            on_error=skip,
            progress=bar.show,
        )
    if judge is None:
        return detector
    require_fitted(judge)
    if getattr(judge, "threshold_", None) is None:
        print_error("the detector has no threshold, so images get a score and no label")
        return detector
    if given["save_model"] is not None:
        detector.save(given["save_model"])
    if given["threshold"] is not None:
        judge.set_threshold(given["threshold"], origin="--threshold")
    calibration = judge.calibration_
    if fitting or good is not None:
        print_error(
            f"threshold {calibration.threshold:.6g} from {calibration.n_scores} good images "
            f"({calibration.method})"
        )
    for note in calibration.notes:
        print_error(f"threshold: {note}")
    return detector


def _of_product(detector: AnyScorer, given: dict[str, Any]) -> Any:
    """Return the detector of the product that --product names, or else the detector itself.

    None of a detector of many products without a name, of which nothing is set or calibrated.
    """
    from ..models.many_products import ManyProducts

    named = given["product"] is not None or given["product_from_folder"]
    if not isinstance(detector, ManyProducts):
        if named:
            raise click.UsageError("--product: the detector is of one product and knows no names")
        return detector
    if given["product"] is not None:
        return detector.product(given["product"])
    for name in ("threshold", "calibrate_on", "save_model"):
        if given[name] is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')}: the detector is of many products; name one with "
                f"--product: {', '.join(detector.products_)}"
            )
    return None


def _score(
    given: dict[str, Any],
    detector: AnyScorer,
    paths: Sequence[str],
    root: str | None,
    problems: Sequence[str],
    kept: RecordFile | None,
) -> int:
    from ..inference.inputs import lines_of
    from ..inference.records import RecordFile
    from ..inference.scoring import judge_of
    from ..inference.session import Session
    from ..inference.watch import Watcher
    from ..models.context_share import context_share

    watching = given["watch"] is not None
    streaming = "-" in given["inputs"]
    total = None if watching or streaming else len(paths)
    out = _Output(given["quiet"], total, people=for_people(given["as_json"]))
    page = _page(given, detector)

    def shown(record: InferenceRecord, found: npt.NDArray[np.float32] | None) -> None:
        assert page is not None
        judge = judge_of(detector, record.product)
        share = None if judge is None else context_share(judge, record.score, found)
        page.add(record, found, share)

    session = Session(
        detector,
        _wanted(given),
        out.emit,
        pixel_threshold=given["pixel_threshold"],
        batch_size=given["batch_size"],
        look=None if page is None else shown,
        warn=print_error,
        product=_folder_of if given["product_from_folder"] else given["product"],
    )
    if kept is not None:
        out.file, session.first = kept, kept.count
    elif given["save_jsonl"] is not None:
        out.file = RecordFile(given["save_jsonl"])
    elif watching:
        print_error("without --save-jsonl nothing is remembered: a restart scores all files again")
    try:
        with out.bar, page or nullcontext():
            if watching:
                watcher = Watcher(
                    given["watch"],
                    settle=given["settle"],
                    known=set() if out.file is None else out.file.known,
                    leave_out=output_folders(given),
                    only_new=given["only_new"],
                    warn=print_error,
                )
                try:
                    session.watch(
                        watcher,
                        interval=given["watch_interval"],
                        stop_when_idle=given["stop_when_idle"],
                    )
                except KeyboardInterrupt:  # the way to end it
                    current_caller().interruption.end_as_usual()
                    print_error("stopped")
            else:
                session.score(paths, root)
                if streaming:
                    if sys.stdin is None:
                        raise click.UsageError("--input -: stdin is closed")
                    before = session.total
                    session.score_stream(lines_of(sys.stdin.buffer), root)
                    if session.total == before:
                        said = "-: stdin named no image; give paths of images, one a line"
                        print_error(said)
                        problems = [*problems, said]
    finally:
        out.close()
    out.summary(session.total, session.defective, session.unreadable, session.unknown)
    if page is not None:
        print_error(f"page: {given['html']}")
    unreadable = session.unreadable and given["on_error"] == "error"
    return 1 if unreadable or problems else 0


def _folder_of(path: Any) -> str:
    """Return the name of the folder that an image lies in."""
    return Path(path).absolute().parent.name


def _page(given: dict[str, Any], detector: AnyScorer) -> NewImagesPage | None:
    """Return the page that --html asks for."""
    if given["html"] is None:
        return None
    from ..inference.detectors import bits_of
    from ..pages import NewImagesPage

    name = given["model"] or ("vision_patchcore" if given["train_dir"] is not None else None)
    source = given["model_dir"] or given["from_run"]
    watching = given["watch"] is not None or "-" in given["inputs"]
    # of many products there is no one value of normal pixels
    pixels = getattr(detector, "pixel_calibration_", None)
    return NewImagesPage(
        given["html"],
        detector=name or str(source),
        normal=None if pixels is None else pixels.mean,
        pixel_threshold=given["pixel_threshold"],
        bit_depth=bits_of(detector),
        watching=watching,
    )


def _for_people(record: InferenceRecord) -> str:
    """Return a record as a line for a terminal."""
    if record.product_known_by == "unknown":
        return plain(f"no decision      {record.input}  {record.error}")
    if record.error is not None:
        return plain(f"unread           {record.input}  {record.error}")
    if record.pred is None:
        return plain(f"score {record.score:<10.4g} {record.input}")
    from ..inference.result_face import rounded_ratio

    called = "DEFECT" if record.pred else "good"
    said = f"score {record.score:.4g}"
    if record.score_ratio is not None:
        said = f"{rounded_ratio(record.score_ratio):>6} x"
    found = ""
    if record.regions:
        count, (x, y) = len(record.regions), record.regions[0].peak_at
        found = f"  {count} region{'s' * (count > 1)}, the worst at {x}, {y}"
    product = "" if record.product is None else f"  {record.product}"
    return plain(f"{called:<7} {said}  {record.input}{found}{product}")


class _Output:
    """Records to the file first, then to stdout; the rate on stderr."""

    def __init__(self, quiet: bool, total: int | None, *, people: bool) -> None:
        self._people = people
        self.file: RecordFile | None = None
        self._quiet = quiet
        self._total = total
        self._begun = time.monotonic()
        self._count = self._named = 0
        # records and a bar on one terminal would write over each other
        shown = quiet or sys.stdout is None or not sys.stdout.isatty()
        self.bar = Bar() if shown else Bar(silent=True)

    def emit(self, record: InferenceRecord) -> None:
        from ..inference.records import as_line

        line = as_line(record)
        if self.file is not None:
            self.file.write(line)
        if not self._quiet:
            print_text(_for_people(record) if self._people else line)
        self._count += 1
        if record.error is not None:
            self._named += 1
            if self._named <= _NAMED:
                print_error(f"{record.input}: {record.error}")
        self.bar.show(f"{self._rate():.1f} images/s", self._count, self._total)

    def summary(self, total: int, defective: int, unreadable: int, unknown: int = 0) -> None:
        """The last line on stderr."""
        plural = "s" * (total != 1)
        print_error(
            f"{total} image{plural}: {defective} defective, "
            f"{total - defective - unreadable - unknown} good, {unreadable} unreadable"
            f"{f', {unknown} of an unknown product' if unknown else ''}; "
            f"{self._rate():.1f} images/s"
        )

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _rate(self) -> float:
        return self._count / max(1e-9, time.monotonic() - self._begun)
