"""XMP and IPTC: `DigitalSourceType`, credit lines, and the Chinese label of generated content."""

import itertools
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError

from ganscope.detector.evidence.metadata import Metadata, Text
from ganscope.detector.evidence.record import (
    CAPTURED,
    EDITED,
    GENERATED,
    NOTHING,
    Finding,
    as_json,
    clean,
    said,
)
from ganscope.errors import reason_of

SOURCE_TYPES = {
    "trainedalgorithmicmedia": (GENERATED, "made by a trained model"),
    "trainedalgorithmicdata": (GENERATED, "made by a trained model"),
    "compositewithtrainedalgorithmicmedia": (EDITED, "partly made by a trained model"),
    "compositesynthetic": (NOTHING, "a composite with synthetic elements"),
    "algorithmicmedia": (NOTHING, "made by an algorithm that was not trained"),
    "algorithmicallyenhanced": (NOTHING, "enhanced by an algorithm"),
    "digitalcapture": (CAPTURED, "captured by a digital camera"),
    "computationalcapture": (CAPTURED, "captured by a camera and computed from several exposures"),
    "multiframecomputationalcapture": (CAPTURED, "computed from several exposures of a camera"),
    "negativefilm": (CAPTURED, "scanned from negative film"),
    "positivefilm": (CAPTURED, "scanned from positive film"),
    "print": (NOTHING, "scanned from a print"),
    "compositecapture": (NOTHING, "a composite of captured elements"),
    "composite": (NOTHING, "a composite"),
    "humanedits": (NOTHING, "edited by a person"),
    "minorhumanedits": (NOTHING, "edited a little by a person"),
    "digitalcreation": (NOTHING, "drawn by a person with digital tools"),
    "digitalart": (NOTHING, "drawn by a person with digital tools"),
    "datadrivenmedia": (NOTHING, "drawn from data"),
    "softwareimage": (NOTHING, "made by software"),
    "virtualrecording": (NOTHING, "recorded in a virtual world"),
    "screencapture": (NOTHING, "captured from a screen"),
}
"""The words of IPTC's list of digital source types (and of C2PA's), in lower case: what they
declare, and what they mean. https://cv.iptc.org/newscodes/digitalsourcetype/"""

MADE = re.compile(
    r"(?:(?:made|created|generated|imagined) (?:with|by|using) (?:[\w.\-]+ ){0,3}AI"
    r"|AI[- ](?:generated|image)|generated (?:image|by AI))",
    re.IGNORECASE,
)
REWORKED = re.compile(
    r"(?:edited|modified|enhanced) (?:with|by|using) (?:[\w.\-]+ ){0,3}AI", re.IGNORECASE
)
CREDITS = ("Credit", "Source", "Byline", "Instructions", "Program")
"""Fields that say who made a picture, with IPTC's names and XMP's."""

LONGEST = 16 << 20
"""Bytes of XMP that are parsed."""
MOST = 500
"""Properties of XMP that are looked at."""


def source_type(word: str) -> tuple[str, str] | None:
    """What a digital source type declares and means: an address of IPTC's list, or its last word in
    any case; None for an unknown one.
    """
    return SOURCE_TYPES.get(re.split(r"[/#:]", word.strip().rstrip("/"))[-1].casefold())


def read_xmp(metadata: Metadata) -> Iterator[Finding]:
    """What XMP declares; texts that it holds are added to the metadata's."""
    if not metadata.xmp.strip(b"\0 \r\n\t"):
        return
    try:
        root = _parsed(metadata.xmp)
    except Exception as error:  # expat's, defusedxml's for bombs, encodings
        reason = clean(" ".join(reason_of(error).split()), 120)
        yield Finding(where="XMP", says=f"cannot be read ({reason})")
        return
    types: dict[str, None] = {}
    for name, value in itertools.islice(_properties(root), MOST):
        if name.casefold() in ("digitalsourcetype", "digitalsourcefiletype"):
            types[value.strip()] = None
        elif name == "provenance" and value.startswith("http"):
            yield Finding(
                where="XMP",
                says="a C2PA manifest is said to lie elsewhere; nothing was fetched",
                details={"address": clean(value, 500)},
            )
        elif name not in ("about", "resource"):
            metadata.texts.append(Text("XMP", name, value))
    for word in types:
        declared, means = source_type(word) or (NOTHING, "an unknown digital source type")
        yield Finding(
            where="XMP",
            says=f"digital source type: {means}",
            declared=declared,
            details={"DigitalSourceType": clean(word, 500)},
        )


def read_credits(metadata: Metadata) -> Iterator[Finding]:
    """Credit lines such as "Made with Google AI"."""
    for text in metadata.texts:
        if text.where in ("IPTC", "XMP") and text.key in CREDITS:
            line = clean(text.text, 200)
            declared = (
                GENERATED
                if MADE.fullmatch(line)
                else EDITED
                if REWORKED.fullmatch(line)
                else NOTHING
            )
            yield Finding(
                where=f"{text.where} {text.key}",
                says=f'"{line}"',
                declared=declared,
                by=_company(line) if declared != NOTHING else None,
            )


def _company(line: str) -> str | None:
    """ "Google AI" of "Made with Google AI"."""
    found = re.search(r"(?:with|by|using) (.+ AI)$", line, re.IGNORECASE)
    return found[1] if found else None


AIGC = {"1": "generated by AI", "2": "may be generated by AI", "3": "suspected to be generated"}


def read_aigc(metadata: Metadata) -> Iterator[Finding]:
    """The Chinese label of generated content (TC260, GB 45438-2025): JSON in XMP, EXIF or PNG text.

    Its maker says 1, it is; a platform that passes it on may say 2, perhaps, or 3, suspected.
    """
    for text in metadata.texts:
        if "AIGC" not in text.key and '"AIGC"' not in text.text and '"Label"' not in text.text:
            continue
        data = as_json(text.text)
        if isinstance(data, dict) and isinstance(data.get("AIGC"), dict | str):
            inner = data["AIGC"]
            data = as_json(inner) if isinstance(inner, str) else inner
            known = True
        else:
            known = text.key == "AIGC"
        if not isinstance(data, dict) or "Label" not in data:
            continue
        label = said(data["Label"]) or ""
        if not known and not ("ContentProducer" in data or "ProduceID" in data):
            continue
        yield Finding(
            where=f"{text.where} {text.key}",
            says=f"Chinese label of generated content: {AIGC.get(label, f'unknown label {label}')}",
            declared=GENERATED if label == "1" else NOTHING,
            by=said(data.get("ContentProducer")),
            details={str(k)[:80]: clean(v, 1000) for k, v in list(data.items())[:20]},
        )


def _parsed(packet: bytes) -> Element:
    """The root of an XMP packet; raises what defusedxml and expat do, for bombs as well."""
    from defusedxml.ElementTree import fromstring

    if len(packet) > LONGEST:
        raise ValueError(f"{len(packet):,} bytes")
    packet = packet.strip(b"\0 \r\n\t")
    for tag in (b"x:xmpmeta", b"x:xapmeta", b"rdf:RDF"):
        begin, end = packet.find(b"<" + tag), packet.rfind(b"</" + tag + b">")
        if 0 <= begin < end and b"<!DOCTYPE" not in packet[:begin]:
            packet = packet[begin : end + len(tag) + 3]
            break
    try:
        return fromstring(packet, forbid_dtd=True)
    except ParseError:
        # bytes that are no UTF-8, or a sign that XML does not allow, should not hide the rest
        text = packet.decode("utf-8", "replace")
        return fromstring(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text), forbid_dtd=True)


def _properties(root: Element) -> Iterator[tuple[str, str]]:
    """Local names and values of an XMP packet's own properties: attributes, elements, and the items
    of lists; not of what is nested deeper, which may be about another picture (an ingredient).
    """
    rdf = (
        root
        if _local(root.tag) == "RDF"
        else next((c for c in root if _local(c.tag) == "RDF"), None)
    )
    for description in () if rdf is None else rdf:
        yield from ((_local(name), value) for name, value in description.attrib.items())
        for child in description:
            resource = next((v for k, v in child.attrib.items() if _local(k) == "resource"), None)
            items = [item.text for box in child for item in box if _local(item.tag) == "li"]
            for value in (resource, child.text, *items):
                if value and value.strip():
                    yield _local(child.tag), value


def _local(name: object) -> str:
    return str(name).rpartition("}")[2]
