"""`ganscope export`: a detector for other programs, and for machines without torch."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer

from ganscope.cli.console import err, out, progress
from ganscope.config import ExportSettings
from ganscope.errors import counted

NAMED = 5
"""Pictures that are named of those with another verdict, and of those left out."""


def export(
    detector: Annotated[str, typer.Argument(help="A shipped detector, a run folder or a hub id.")],
    to: Annotated[str, typer.Option(help="onnx, torchscript or openvino.")] = "onnx",
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="File, or folder for openvino; default: the detector's name."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            help="Weights as bytes, and what a transformer multiplies them by: a quarter of the "
            "size, transformers nearly twice as quick on a CPU, small differences in scores."
        ),
    ] = False,
    half: Annotated[bool, typer.Option(help="Weights in fp16: half the size.")] = False,
    map_: Annotated[
        bool,
        typer.Option(
            "--map/--no-map",
            help="The map that heatmaps are made of goes along; without it an ONNX file of default "
            "is 1.4 times as quick, with --int8 0.7 of its size.",
        ),
    ] = True,
    sample: Annotated[
        list[str] | None,
        typer.Option(help="Pictures or folder to compare its scores on; may be given repeatedly."),
    ] = None,
    most: Annotated[int, typer.Option(help="Pictures of the sample looked at, at most.")] = 32,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference in score that is accepted; default 0.001, with --half 0.01, "
            "with --int8 0.15."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Export a detector: weights, preprocessing, calibration and thresholds in one file.

    What is written is loaded again and compared with the detector on a sample of pictures; if a
    score differs by more than is promised, nothing is kept. ganscope check --detector FILE judges
    with it, without torch if it is ONNX or OpenVINO.

    Examples:

      ganscope export default --to onnx --int8 --out detector.onnx

      ganscope export default --int8 --no-map --out verdicts.onnx

      ganscope export runs/detector/clip --to openvino --sample photos/

      ganscope check photo.jpg --detector detector.onnx
    """
    settings = ExportSettings(
        detector=detector,
        to=to,
        out=out_,
        int8=int8,
        half=half,
        map=map_,
        sample=tuple(sample or ()),
        most=most,
        tolerance=tolerance,
    )
    from ganscope.detector.judging.exporting import export_detector

    with progress() as bar:
        task = bar.add_task("loading", total=None, note="")
        found = export_detector(
            settings,
            lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    if json:
        print(json_library.dumps(found.as_dict()))
        return
    out.print(f"{found.path}: {found.bytes / 1e6:.1f} MB", highlight=False, markup=False)
    err.print(
        f"compared with {detector} on {counted(found.images, 'picture')}: scores differ by "
        f"{found.largest:.2g} at most ({found.mean:.2g} on average), promised is "
        f"{settings.promised:g}; {len(found.changed)} of {found.images} verdicts are other ones",
        highlight=False,
    )
    for one in found.changed[:NAMED]:
        err.print(
            f"{one.picture}: {one.verdict} ({one.score:.3f}), exported {one.exported_verdict} "
            f"({one.exported_score:.3f})",
            highlight=False,
            markup=False,
        )
    if left_out := found.left_out:
        more = ", ..." if len(left_out) > NAMED else ""
        err.print(
            f"not compared, for they cannot be judged: {', '.join(left_out[:NAMED])}{more} "
            f"({len(left_out)})",
            highlight=False,
            markup=False,
        )
