"""Hostile bytes where files speak of themselves: never an exception, never long, never much."""

import json
import struct
import time
import zlib

import numpy as np
import pytest
from declaring_files import CREATED, EXPOSED, IPTC, WEBUI, jpeg, png, sign, xmp

from ganscope.detector.evidence.evidence import read_evidence
from ganscope.detector.evidence.record import CAPTURED, NOTHING

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "&a;" * 10}">' for i in range(9))
    + ']><x:xmpmeta xmlns:x="adobe:ns:meta/"><b>&a8;</b></x:xmpmeta>'
)
OUTSIDE = (
    '<!DOCTYPE b [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><b>&e;</b></x:xmpmeta>'
)


@pytest.mark.parametrize("packet", [BOMB, OUTSIDE, "<x:xmpmeta", "<a>" * 50_000, "\0\0", "&&&"])
def test_xml_bombs_are_refused_and_told(packet: str) -> None:
    start = time.process_time()
    found = read_evidence(png(XMP=packet))
    assert time.process_time() - start < 2
    assert found.declared == NOTHING
    assert "root:" not in json.dumps(found.as_dict())
    if packet.strip("\0"):
        assert any(f.where == "XMP" and "cannot be read" in f.says for f in found.findings)


def _bombs() -> bytes:
    """Sixty texts of forty megabytes in a file of three."""
    content = png()
    body = b"zTXta\0\0" + zlib.compress(b"x" * (40 << 20))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk * 60 + content[33:]


HOSTILE = {
    "a megabyte of text": png(parameters="x" * (1 << 20)),
    "a megabyte of commas": png(parameters="Steps: 1, Seed: " + "a: b, " * 200_000),
    "a word without an end": png(parameters="Steps: 1, Seed: 1, " + "x" * 190_000),
    "lines without an end": png(parameters="\nSteps: 1, " * 90_000),
    "spaces without an end": png(parameters="Steps: 1, Seed: 1," + " " * 190_000),
    "thousands of samplers": png(
        prompt=json.dumps(
            {
                str(i): {
                    "class_type": "KSampler",
                    "inputs": {"latent_image": [str(i + 1), 0], "model": [str(i + 1), 0]},
                }
                for i in range(9000)
            }
        )
    ),
    "bombs one after the other": _bombs(),
    "quotes without an end": png(parameters='Steps: 1, Seed: 1, X: "' + "\\" * 100_000),
    "nested JSON": png(prompt='{"a":' * 100_000, workflow="[" * 100_000),
    "numbers without an end": png(
        parameters='{"prompt": "x", "steps": 1, "seed": ' + "9" * 9000 + "}"
    ),
    "JSON of other kinds": png(
        prompt=json.dumps(
            {"1": {"class_type": 5, "inputs": [1]}, "2": None, "3": {"class_type": {}}}
        ),
        workflow=json.dumps({"nodes": [None, 5, {"inputs": [None]}], "links": [[{}, {}, {}], 3]}),
        invokeai_metadata='{"model": [], "seed": {}, "positive_prompt": []}',
        Comment='{"AIGC": {"Label": {}}}',
    ),
    "lone surrogates": png(Comment='{"prompt": "\\ud800", "seed": "\\udfff", "steps": 1}'),
    "names from nowhere": jpeg({0x010F: "\0\0", 0x0110: "\x1b[31m"}, EXPOSED),
    "a comment of odd length": jpeg(inner={0x9286: b"UNICODE\0" + b"\0\xd8\0"}),
    "no file": b"",
    "a head alone": b"\x89PNG\r\n\x1a\n",
    "wrong lengths": b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xfftEXt" + b"a" * 50,
    "broken CBOR": jpeg()[:2]
    + b"\xff\xeb\x00\x3aJP\x00\x01\x00\x00\x00\x01\x00\x00\x00\x30jumb\x00\x00\x00\x28jumdc2pa"
    + b"\xa5\xff\xff" * 10
    + jpeg()[2:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_never_raise(name: str) -> None:
    start = time.process_time()
    found = read_evidence(HOSTILE[name])
    assert time.process_time() - start < 3
    json.dumps(found.as_dict()).encode("utf-8")
    assert found.declared != CAPTURED or name == "names from nowhere"


def test_mutated_files_never_raise() -> None:
    """A few; `benchmarks/campaigns/evidence.py` tries thousands."""
    whole = [png(parameters=WEBUI, XMP=xmp("", f'i:DigitalSourceType="{IPTC}x"')), sign(CREATED)]
    rng = np.random.default_rng(0)
    for number in range(60):
        content = bytearray(whole[number % 2])
        for at in rng.integers(0, len(content), 8):
            content[at] = rng.integers(256)
        if number % 3 == 0:
            del content[int(rng.integers(len(content))) :]
        json.dumps(read_evidence(bytes(content)).as_dict()).encode("utf-8")
