"""What `ganscope inspect` does, as a function: files as a stream, each with its evidence."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ganscope.config import InspectSettings
from ganscope.detector.evidence.evidence import evidence_of, read_evidence
from ganscope.detector.evidence.record import Evidence
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.evidence.watermarks import watermarks_installed
from ganscope.errors import GanscopeError, ImageError
from ganscope.images import find_images, open_image, read_content


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one file says of its making; one that cannot be read has an `error`."""

    path: str
    evidence: Evidence = field(default_factory=Evidence)
    remarks: tuple[str, ...] = ()
    """What was not looked at."""
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": self.path, **self.evidence.as_dict(), "error": self.error}


def inspect_images(settings: InspectSettings) -> Iterator[Inspection]:
    """Inspect images as a stream, in order: files as named, folders' images in sorted order.

    Raises `GanscopeError` if a path does not exist, a folder holds no images, the trust anchors
    hold no certificates, or watermarks are asked for and cannot be read.
    """
    for path in settings.paths:
        if next(find_images(path), None) is None:
            raise GanscopeError(f"{path}: no images in this folder")
    if settings.watermarks and not watermarks_installed():
        raise GanscopeError("--watermarks needs: pip install 'ganscope[watermark]'")
    anchors = find_anchors(settings.trust_anchors)
    remarks = [] if anchors else ["no issuer was checked: ganscope trust update fetches the list"]
    if watermarks_installed() and not settings.watermarks:
        remarks.append("invisible watermarks were not looked for; --watermarks does")
    for path in settings.paths:
        for name in find_images(path):
            try:
                if settings.watermarks:
                    found = evidence_of(open_image(name), settings.trust_anchors)
                else:
                    found = read_evidence(read_content(name), name, settings.trust_anchors)
            except ImageError as error:
                yield Inspection(path=name, error=error.reason)
                continue
            signed = any(f.where == "C2PA manifest" for f in found.findings)
            yield Inspection(
                path=name, evidence=found, remarks=tuple(remarks[0 if signed or anchors else 1 :])
            )
