"""EXIF: camera, exposure and dates, and programs that name themselves there."""

import re
from collections.abc import Iterator

from ganscope.detector.evidence.metadata import Metadata, shown
from ganscope.detector.evidence.record import CAPTURED, GENERATED, NOTHING, Finding, clean

EXPOSURE = ("ExposureTime", "FNumber", "ISOSpeedRatings", "PhotographicSensitivity", "FocalLength")
CAMERA = (
    "Make",
    "Model",
    "LensModel",
    "Software",
    "DateTimeOriginal",
    "DateTimeDigitized",
    "DateTime",
    *EXPOSURE,
    "Artist",
    "Copyright",
    "ImageDescription",
    "GPS",
)
HIDDEN = ("MakerNote", "UserComment", "ExifOffset", "GPSInfo", "PrintImageMatching")
"""EXIF that is no text, or is read elsewhere."""
GENERATORS = {
    "midjourney": "Midjourney",
    "adobe firefly": "Adobe Firefly",
    "dall": "DALL-E",
    "stable diffusion": "Stable Diffusion",
    "novelai": "NovelAI",
    "invokeai": "InvokeAI",
    "fooocus": "Fooocus",
    "draw things": "Draw Things",
    "ideogram": "Ideogram",
    "leonardo.ai": "Leonardo.Ai",
    "dreamstudio": "DreamStudio",
}
"""Beginnings of what generators write as the program that made a picture, in lower case."""
PROGRAM = (
    ("EXIF", "Software"),
    ("PNG text", "Software"),
    ("PNG text", "Generator"),
    ("XMP", "CreatorTool"),
    ("IPTC", "Program"),
)


def read_camera(metadata: Metadata) -> Iterator[Finding]:
    """What camera the EXIF names: one that has make or model and something of an exposure."""
    exif = metadata.exif
    details = shown(exif, *CAMERA, *(name for name in exif if name not in HIDDEN))
    if not details:
        return
    names = [details[name] for name in ("Make", "Model") if name in details]
    if any(re.match(r"(?:prompt|workflow):\s*\{", name) for name in names):
        return  # ComfyUI keeps its graph there
    make, model = details.get("Make", ""), details.get("Model", "")
    camera = model if model.casefold().startswith(make.casefold()) else f"{make} {model}".strip()
    exposed = [name for name in EXPOSURE if name in details]
    captured = bool(camera) and bool(exposed)
    yield Finding(
        where="EXIF",
        says=f"camera {clean(camera, 100)}" if captured else "dates, program or other notes",
        declared=CAPTURED if captured else NOTHING,
        by=clean(camera, 100) if captured else None,
        details={name: clean(value, 1000) for name, value in details.items()},
    )


def read_program(metadata: Metadata) -> Iterator[Finding]:
    """A generator that is named as the program that made the picture."""
    for where, key in PROGRAM:
        text = clean(metadata.text(where, key), 200)
        name = next((n for word, n in GENERATORS.items() if _begins(text, word)), None)
        if name:
            yield Finding(
                where=f"{where} {key}", says=f'made by "{text}"', declared=GENERATED, by=name
            )


def _begins(text: str, word: str) -> bool:
    """Whether a text begins with a word, not with a longer one that begins alike."""
    lower = text.casefold()
    return lower.startswith(word) and not lower[len(word) : len(word) + 1].isalpha()


_JOB = re.compile(r"(?:^|\s)Job ID: ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*$")
_OPTION = re.compile(r"\s--[a-z]")
"""Of Midjourney's commands: --ar 3:2, --v 6.1."""


def read_job(metadata: Metadata) -> Iterator[Finding]:
    """Midjourney's line: the prompt, and at its end "Job ID:" with its number.

    Printers and agencies number their jobs, too: so only with an option of Midjourney's commands,
    an author beside it, as its PNGs have, or the same number in XMP.
    """
    for text in metadata.texts:
        if len(text.text) > 100_000:
            continue
        found = _JOB.search(text.text[-100:])
        if not found:
            continue
        prompt = text.text[: text.text.rindex("Job ID:")]
        authored = text.key == "Description" and metadata.text("PNG text", "Author")
        same = metadata.text("XMP", "DigImageGUID") == found[1]
        if _OPTION.search(prompt) or authored or same:
            yield Finding(
                where=f"{text.where} {text.key}",
                says="a job of Midjourney",
                declared=GENERATED,
                by="Midjourney",
                prompt=clean(prompt) or None,
                details={"Job ID": found[1]},
            )
            return
