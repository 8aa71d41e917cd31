"""The door: what a file says of its own making, from its bytes."""

from pathlib import Path

from ganscope.detector.evidence.camera import read_camera, read_job, read_program
from ganscope.detector.evidence.comfyui import read_graphs
from ganscope.detector.evidence.manifests import BOX, read_manifests
from ganscope.detector.evidence.metadata import Metadata, is_bare, read_metadata
from ganscope.detector.evidence.parameters import read_parameters
from ganscope.detector.evidence.record import CAPTURED, NOTHING, Evidence, Finding, clean, judge
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.evidence.watermarks import find_watermark
from ganscope.detector.evidence.xmp import read_aigc, read_credits, read_xmp
from ganscope.errors import reason_of
from ganscope.images import OpenedImage


def read_evidence(content: bytes, name: str = "", trust_anchors: Path | None = None) -> Evidence:
    """What a file's bytes say of its making: signed manifests, XMP, IPTC, EXIF, settings of
    generators. The pixels are not looked at.

    name: what the file is called; nothing is concluded from it. trust_anchors: certificates (PEM)
    of the issuers that are trusted; None: the list that `ganscope trust update` fetched, if there
    is one. Whatever the bytes are, nothing is raised: what cannot be read is a finding that says
    so. Raises `GanscopeError` if `trust_anchors` cannot be read.
    """
    signed = BOX in content
    anchors = find_anchors(trust_anchors) if signed or trust_anchors else None
    metadata = read_metadata(content)
    if not signed and metadata.empty:
        return Evidence()
    findings = list(read_manifests(content, metadata.format, anchors))
    for read in READERS:
        try:
            findings += read(metadata)
        except Exception as error:  # a reader's mistake must not cost a check its verdict
            findings.append(
                Finding(
                    where=read.__name__.removeprefix("read_"),
                    says=f"cannot be read ({clean(reason_of(error), 160)})",
                )
            )
    if all(f.declared in (NOTHING, CAPTURED) for f in findings):
        # The name of a program says less than its settings: whether a picture was loaded into it.
        findings += read_program(metadata)
    findings += _rest(metadata, {finding.where for finding in findings})
    findings += [Finding(where="file", says=said) for said in metadata.unread]
    return judge(findings)


def evidence_of(image: OpenedImage, trust_anchors: Path | None = None) -> Evidence:
    """What an opened image's file says of its making, and the invisible watermarks in its pixels
    where `invisible-watermark` is installed. As `read_evidence`.
    """
    content = image.content
    # Many files on the web carry nothing, which is seen quicker than it is read.
    silent = content is None or (image.format == "JPEG" and is_bare(content) and BOX not in content)
    if silent and trust_anchors:
        find_anchors(trust_anchors)
    found = Evidence() if silent else read_evidence(content or b"", image.path, trust_anchors)
    mark = find_watermark(image.pixels)
    return judge([*found.findings, mark]) if mark else found


SHOWN = 100
"""Texts that are shown though they declare nothing."""


def _rest(metadata: Metadata, told: set[str]) -> list[Finding]:
    """The texts that no finding is about, for those who want to see all."""
    texts = [
        (f"{text.where} {text.key}", clean(text.text, 1000))
        for text in metadata.texts
        if text.where != "EXIF" and f"{text.where} {text.key}" not in told
    ]
    details = {name: text for name, text in texts[:SHOWN] if text}
    says = "declare nothing that is known here"
    return [Finding(where="other texts", says=says, details=details)] if details else []


def _graphs(metadata: Metadata) -> list[Finding]:
    return list(read_graphs((text.where, text.key, text.text) for text in metadata.texts))


READERS = (
    read_xmp,  # first: it adds to the texts
    _graphs,
    read_parameters,
    read_job,
    read_aigc,
    read_credits,
    read_camera,
)
"""Each takes a file's `Metadata` and gives findings. To read another declaration, add one."""
