"""The record of evidence: what a file declares, who says so, and how far that can be trusted."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GENERATED = "generated"
EDITED = "edited with AI"
CAPTURED = "captured by a camera"
NOTHING = "nothing said"
STRENGTH = (NOTHING, CAPTURED, EDITED, GENERATED)
"""The later one wins where a file says several."""

KNOWN_ISSUER = "valid signature by a known issuer"
UNKNOWN_ISSUER = "valid signature, issuer not among the trusted"
UNCHECKED = "valid signature, issuer not checked"
INVALID = "invalid signature"
PLAIN = "plain text that anybody can write"
PATTERN = "pattern in the pixels that anybody can embed"
TRUST = (INVALID, PLAIN, PATTERN, UNCHECKED, UNKNOWN_ISSUER, KNOWN_ISSUER)
"""From the weakest to the strongest."""

LONGEST = 20_000
"""Characters of one field that are kept; a prompt has some hundreds."""
LONGEST_JSON = 32 << 20
"""Characters of JSON that are parsed; the largest graphs of ComfyUI have some millions."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a file says."""

    where: str
    """In what part of the file: "C2PA manifest", "XMP", "PNG text parameters", ..."""
    says: str
    """What it says, in a line."""
    declared: str = NOTHING
    """One of `STRENGTH`."""
    trust: str = PLAIN
    """One of `TRUST`."""
    by: str | None = None
    """Program, company or camera."""
    model: str | None = None
    seed: str | None = None
    prompt: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    """All else that was found there, by name."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a file says of itself, and every finding that this rests on."""

    declared: str = NOTHING
    """generated, edited with AI, captured by a camera, or nothing said."""
    by: str | None = None
    model: str | None = None
    seed: str | None = None
    prompt: str | None = None
    trust: str | None = None
    """One of `TRUST`; None where nothing is said."""
    reason: str = NOTHING
    """In a line, for people."""
    findings: tuple[Finding, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields, the findings as a list of objects."""
        return asdict(self) | {"findings": [asdict(one) for one in self.findings]}


def judge(findings: Sequence[Finding]) -> Evidence:
    """Sum up findings: the strongest declaration counts, of equal ones the best trusted.

    A later, weaker statement never hides an earlier, stronger one: that a generated picture was
    transcoded or enhanced afterwards does not make it less generated. Model, seed and prompt may
    come from another finding that declares the same and is trusted alike.
    """
    best = max(findings, key=_weight, default=None)
    if best is None or best.declared == NOTHING:
        return Evidence(findings=tuple(findings))
    alike = [f for f in findings if (f.declared, f.trust) == (best.declared, best.trust)]

    def first(name: str) -> str | None:
        return next((found for f in [best, *alike] if (found := getattr(f, name))), None)

    reason = f"{best.where}: {best.says} ({best.trust})"
    if best.declared != CAPTURED and any(f.declared == CAPTURED for f in findings):
        reason += "; another part of the file names a camera"
    return Evidence(
        declared=best.declared,
        by=first("by"),
        model=first("model"),
        seed=first("seed"),
        prompt=first("prompt"),
        trust=best.trust,
        reason=reason,
        findings=tuple(findings),
    )


def _weight(finding: Finding) -> tuple[int, int, int]:
    said = sum(bool(v) for v in (finding.by, finding.model, finding.seed, finding.prompt))
    return STRENGTH.index(finding.declared), TRUST.index(finding.trust), said


def clean(value: object, most: int = LONGEST) -> str:
    """Any value as text that is safe to print and to write: no lone surrogates, no control
    characters but line ends and tabs, none that turn the direction of writing, and not endless.
    """
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    cut = f"{text[:most]}... ({len(text):,} characters)" if len(text) > most else text
    cut = cut.replace("\r\n", "\n").encode("utf-8", "replace").decode("utf-8")
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", cut).strip()


_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def said(value: object) -> str | None:
    """`clean`, or None where nothing is left, or the value is no text, number or word."""
    if not isinstance(value, str | bytes | int | float) or isinstance(value, bool):
        return None
    return clean(value) or None


def as_json(text: str) -> Any:
    """What JSON says; None if it is none, or too long or nested too deeply to be read."""
    if len(text) > LONGEST_JSON or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
