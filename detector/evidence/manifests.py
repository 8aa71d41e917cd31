"""C2PA manifests: what is claimed of a picture's making, and whether the signature holds.

The library reads and verifies (`c2pa-python`); only what it means is said here. Nothing is fetched:
a manifest that lies elsewhere is not looked for, nor is a certificate's revocation.
"""

import functools
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

from ganscope.detector.evidence.record import (
    CAPTURED,
    EDITED,
    GENERATED,
    INVALID,
    KNOWN_ISSUER,
    NOTHING,
    STRENGTH,
    UNCHECKED,
    UNKNOWN_ISSUER,
    Finding,
    clean,
    said,
)
from ganscope.detector.evidence.trust import Anchors
from ganscope.detector.evidence.xmp import source_type
from ganscope.errors import reason_of

BOX = b"jumb"
"""The type of the boxes that manifests lie in: a file without it has none. (The letters "c2pa"
alone may be chance.)"""
MIME = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
    "JXL": "image/jxl",
}
TRUSTED = "signingCredential.trusted"
NO_FAULT = ("signingCredential.untrusted", "timeStamp.untrusted")
"""Failures that say no more than that an issuer is not known."""
DEEPEST = 32
"""Manifests that are followed from one to the next."""

_one_at_a_time = threading.Lock()


def read_manifests(content: bytes, format: str, anchors: Anchors | None) -> Iterator[Finding]:
    """What a file's C2PA manifests say: one finding for the signed claim about the picture.

    anchors: of the issuers that are trusted; without them none is checked.
    """
    if BOX not in content:
        return
    where = "C2PA manifest"
    try:
        import c2pa
    except Exception as error:  # also a library of another platform
        yield Finding(
            where=where,
            says="there may be one; to read it: pip install c2pa-python "
            f"({clean(reason_of(error), 160)})",
        )
        return
    try:
        with _one_at_a_time:
            reader = c2pa.Reader.try_create(
                MIME.get(format), io.BytesIO(content), context=_context(anchors)
            )
            if reader is None:
                return
            with reader:
                store = json.loads(reader.json())
        yield _told(store, anchors is not None)
    except Exception as error:
        yield Finding(
            where=where,
            says=f"cannot be read ({clean(' '.join(reason_of(error).split()), 200)})",
            trust=INVALID,
        )


@functools.lru_cache(maxsize=4)
def _context(anchors: Anchors | None) -> Any:
    import c2pa

    verify = {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}
    # Where no issuer is checked, those of time stamps are not either; else every certificate that
    # has ended since would make its signature invalid.
    settings: dict[str, Any] = {"verify": verify | {"verify_timestamp_trust": anchors is not None}}
    if anchors:
        kinds = (("manifest", anchors.signers), ("tsa", anchors.stamps))
        settings["trust"] = {
            "anchors": [{"trust_kind": kind, "trust_anchors": pem} for kind, pem in kinds]
        }
    return c2pa.Context.from_dict(settings)


def _told(store: dict[str, Any], checked: bool) -> Finding:
    """The finding of a manifest store as the library gives it; checked: against trust anchors."""
    manifests = store.get("manifests") or {}
    label = store.get("active_manifest") or ""
    active = manifests.get(label) or {}
    trust, faults = _trust(store, checked)
    declared, agent, history = _declared(manifests, label)
    signature = active.get("signature_info") or {}
    signer = said(signature.get("issuer")) or said(signature.get("common_name"))
    maker, version = agent or _generator(active)
    camera = _camera(manifests, label) if declared == CAPTURED else None
    words = {
        GENERATED: "made by a trained model",
        EDITED: "partly made by a trained model",
        CAPTURED: "captured by a camera",
        NOTHING: "nothing about a camera or a model",
    }[declared]
    details = {
        "signed by": signer,
        "certificate": said(signature.get("common_name")),
        "signed at": said(signature.get("time")),
        "state": said(store.get("validation_state")),
        "faults": "; ".join(faults) or None,
        "claim generator": " ".join(filter(None, _generator(active))) or None,
        "title": said(active.get("title")),
        "history": "; ".join(history) or None,
        "manifests": str(len(manifests)),
    }
    return Finding(
        where="C2PA manifest",
        says=f"{words}, signed by {signer}" if signer else words,
        declared=declared,
        trust=trust,
        by=camera or (signer if declared != NOTHING else None) or maker,
        model=" ".join(filter(None, (maker, version))) or None
        if declared in (GENERATED, EDITED) and agent
        else None,
        details={key: clean(value, 4000) for key, value in details.items() if value},
    )


def _trust(store: dict[str, Any], checked: bool) -> tuple[str, list[str]]:
    """How far a store can be trusted, and what is wrong with it (codes)."""
    results = (store.get("validation_results") or {}).get("activeManifest") or {}
    failed = [*_codes(results.get("failure")), *_codes(store.get("validation_status"))]
    for delta in (store.get("validation_results") or {}).get("ingredientDeltas") or ():
        failed += _codes((delta.get("validationDeltas") or {}).get("failure"))
    faults = sorted({code for code in failed if code not in NO_FAULT})
    unknown = UNKNOWN_ISSUER if checked else UNCHECKED
    if faults == ["signingCredential.expired"]:  # it holds; whether it was made in time is unknown
        return unknown, faults
    if faults or store.get("validation_state") == "Invalid":
        return INVALID, faults
    if TRUSTED in _codes(results.get("success")):
        return KNOWN_ISSUER, []
    return unknown, []


def _codes(entries: Any) -> list[str]:
    return [clean(e.get("code"), 80) for e in entries or () if isinstance(e, dict)]


def _declared(
    manifests: dict[str, Any], label: str
) -> tuple[str, tuple[str | None, str | None] | None, list[str]]:
    """What the manifests declare of the picture, the program of the action that declares it, and
    the actions from the first to the last.

    A picture is what its parents were, and what was done to it since: the strongest counts. A part
    that was laid into it, if generated, makes it edited; what a generator was shown does not count.
    """
    found, agent = NOTHING, None
    history: list[str] = []
    seen: set[str] = set()
    open_ = [(label, True)]
    while open_ and len(seen) < DEEPEST:
        label, whole = open_.pop(0)
        manifest = manifests.get(label)
        if label in seen or not isinstance(manifest, dict):
            continue
        seen.add(label)
        parents = [i for i in manifest.get("ingredients") or () if isinstance(i, dict)]
        begun = any(i.get("relationship") == "parentOf" for i in parents)
        lines = []
        for action in _actions(manifest):
            declared = _means(action, begun)
            if declared == GENERATED and not whole:
                declared = EDITED
            if declared == CAPTURED and not whole:
                declared = NOTHING
            lines.append(_line(action))
            if STRENGTH.index(declared) > STRENGTH.index(found):
                found, agent = declared, _agent(action)
        history = lines + history if whole else history
        for ingredient in parents:
            below = said(ingredient.get("active_manifest"))
            relation = ingredient.get("relationship")
            if below and relation in ("parentOf", "componentOf"):
                open_.append((below, whole and relation == "parentOf"))
    return found, agent, history[:40]


def _actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        if isinstance(assertion, dict) and str(assertion.get("label")).startswith("c2pa.actions"):
            data = assertion.get("data")
            actions = data.get("actions") if isinstance(data, dict) else None
            agents = (data.get("softwareAgents") if isinstance(data, dict) else None) or []
            for action in actions or ():
                if isinstance(action, dict):
                    number = action.get("softwareAgentIndex")
                    if isinstance(number, int) and 0 <= number < len(agents):
                        action = {"softwareAgent": agents[number]} | action
                    yield action


def _means(action: dict[str, Any], begun: bool) -> str:
    """What an action declares; a model at work on a picture that was there before edits it."""
    word = said(action.get("digitalSourceType"))
    declared, _ = (source_type(word) if word else None) or (NOTHING, "")
    if declared == GENERATED and begun and action.get("action") != "c2pa.created":
        return EDITED
    return declared


def _agent(action: dict[str, Any]) -> tuple[str | None, str | None] | None:
    agent = action.get("softwareAgent")
    if isinstance(agent, dict):
        return said(agent.get("name")), said(agent.get("version"))
    return (said(agent), None) if said(agent) else None


def _line(action: dict[str, Any]) -> str:
    """An action in a few words."""
    word = said(action.get("digitalSourceType"))
    kind = source_type(word) if word else None
    agent = " ".join(filter(None, _agent(action) or ()))
    parts = (
        said(action.get("action")),
        f"by {agent}" if agent else None,
        f"({kind[1] if kind else word})" if word else None,
        said(action.get("description")),
    )
    return clean(" ".join(filter(None, parts)), 300)


def _generator(manifest: dict[str, Any]) -> tuple[str | None, str | None]:
    """Name and version of the program that made the claim."""
    info = manifest.get("claim_generator_info")
    if isinstance(info, list) and info and isinstance(info[0], dict):
        return said(info[0].get("name")), said(info[0].get("version"))
    return said(manifest.get("claim_generator")), None


def _camera(manifests: dict[str, Any], label: str) -> str | None:
    """Make and model of the camera that a manifest's EXIF assertion names."""
    for manifest in (manifests.get(label), *manifests.values()):
        for assertion in (manifest or {}).get("assertions") or ():
            data = assertion.get("data") if isinstance(assertion, dict) else None
            if isinstance(data, dict):
                words = [said(data.get(key)) for key in ("tiff:Make", "tiff:Model")]
                words = (
                    words
                    if any(words)
                    else [said(data.get(k)) for k in ("exif:Make", "exif:Model")]
                )
                if any(words):
                    return " ".join(filter(None, words))
    return None
