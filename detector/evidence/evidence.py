"""The door: what a file says of its own making, from its bytes."""

from pathlib import Path

from ganscope.detector.evidence.camera import read_camera, read_job, read_program
from ganscope.detector.evidence.comfyui import read_graphs
from ganscope.detector.evidence.manifests import read_manifests
from ganscope.detector.evidence.metadata import Metadata, read_metadata
from ganscope.detector.evidence.parameters import read_parameters
from ganscope.detector.evidence.record import Evidence, Finding, clean, judge
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.evidence.xmp import read_aigc, read_credits, read_xmp
from ganscope.errors import reason_of


def read_evidence(content: bytes, name: str = "", trust_anchors: Path | None = None) -> Evidence:
    """What a file's bytes say of its making: signed manifests, XMP, IPTC, EXIF, settings of
    generators. The pixels are not looked at.

    name: for nothing but the sake of the reader of an error. trust_anchors: certificates (PEM) of
    the issuers that are trusted; None: the list that `ganscope trust update` fetched, if there is
    one. Whatever the bytes are, nothing is raised: what cannot be read is a finding that says so.
    Raises `GanscopeError` if `trust_anchors` cannot be read.
    """
    anchors = find_anchors(trust_anchors)
    metadata = read_metadata(content)
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
    findings += [Finding(where="file", says=said) for said in metadata.unread]
    return judge(findings)


def _graphs(metadata: Metadata) -> list[Finding]:
    return list(read_graphs((text.where, text.key, text.text) for text in metadata.texts))


READERS = (
    read_xmp,  # first: it adds to the texts
    _graphs,
    read_parameters,
    read_job,
    read_aigc,
    read_credits,
    read_program,
    read_camera,
)
"""Each takes a file's `Metadata` and gives findings. To read another declaration, add one."""
