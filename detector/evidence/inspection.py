"""What `ganscope inspect` does, as a function: files as a stream, each with its evidence."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ganscope.config import InspectSettings
from ganscope.containers import HEAD, looks_like_image, refuse_other
from ganscope.detector.evidence.evidence import evidence_of, read_evidence
from ganscope.detector.evidence.record import Evidence
from ganscope.detector.evidence.trust import find_anchors
from ganscope.detector.evidence.watermarks import watermarks_installed
from ganscope.errors import GanscopeError, GanscopeWarning, ImageError
from ganscope.images import open_image, read_content
from ganscope.inputs import Passed, Video, find_inputs, name_of, refuse_missing
from ganscope.limits import Limits


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
        said = self.evidence.as_dict()
        return {"path": self.path, **said, "remarks": list(self.remarks), "error": self.error}


def inspect_images(settings: InspectSettings) -> Iterator[Inspection]:
    """Inspect images as a stream, in order: what is named (`find_inputs`), folders' images sorted.

    Raises `GanscopeError` if a path does not exist, a folder holds no images, the trust anchors
    hold no certificates, or watermarks are asked for and cannot be read.
    """
    refuse_missing(settings.paths)
    if settings.watermarks and not watermarks_installed():
        raise GanscopeError("--watermarks needs: pip install 'ganscope[watermark]'")
    anchors = find_anchors(settings.trust_anchors)
    remarks = [] if anchors else ["no issuer was checked: ganscope trust update fetches the list"]
    if watermarks_installed() and not settings.watermarks:
        remarks.append("invisible watermarks were not looked for; --watermarks does")
    passed = Passed()
    for one in find_inputs(settings.paths, Limits(allow_private=settings.allow_private), passed):
        name, unread = name_of(one), list[str]()
        try:
            if isinstance(one, ImageError):
                raise one
            if isinstance(one, Video):
                raise ImageError(name, "a video; only pictures are inspected")
            if settings.watermarks:
                found = evidence_of(open_image(one), settings.trust_anchors)
            else:
                content = read_content(one)
                if not looks_like_image(content[:HEAD]):
                    refuse_other(content[:HEAD], name)
                found = read_evidence(content, name, settings.trust_anchors)
                try:
                    refuse_other(content[:HEAD], name)
                except ImageError as error:  # an extra is missing; signed manifests need none
                    if all(f.where == "file" for f in found.findings):
                        raise
                    unread = [f"only its manifest was read: {error.reason}"]
        except ImageError as error:
            yield Inspection(path=name, error=error.reason)
            continue
        signed = any(f.where == "C2PA manifest" for f in found.findings)
        told = [*unread, *remarks[0 if signed or anchors else 1 :]]
        if settings.watermarks and not any(f.where == "pixels" for f in found.findings):
            told = [*told, "no invisible watermark was found"]
        yield Inspection(path=name, evidence=found, remarks=tuple(told))
    if str(passed):
        warnings.warn(str(passed), GanscopeWarning, stacklevel=2)
