"""What files say of themselves: every maker's words are read, chance and hostile bytes are not."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from declaring_files import CAMERA, EXPOSED, IPTC, WEBUI, jpeg, picture, png, xmp
from PIL import Image, ImageCms, PngImagePlugin

from ganscope.config import InspectSettings
from ganscope.detector.evidence import watermarks
from ganscope.detector.evidence.comfyui import read_graphs
from ganscope.detector.evidence.evidence import evidence_of, read_evidence
from ganscope.detector.evidence.inspection import inspect_images
from ganscope.detector.evidence.metadata import is_bare, read_metadata
from ganscope.detector.evidence.record import (
    CAPTURED,
    EDITED,
    GENERATED,
    KNOWN_ISSUER,
    NOTHING,
    PATTERN,
    PLAIN,
    UNCHECKED,
    Evidence,
    Finding,
    clean,
    judge,
)
from ganscope.errors import GanscopeError
from ganscope.images import open_image

BESIDE = Path(__file__).resolve().parents[2] / "shared/samples/provenance"
SAMPLES = Path(os.environ.get("GANSCOPE_SHARED_SAMPLES", BESIDE))
"""Makers' own files, which are not ours to publish; what needs them skips without."""


# --- files that carry nothing ---


def test_a_jpeg_that_carries_anything_is_read() -> None:
    """What is not read has no evidence; every part that can hold any makes it be read."""

    def made(**options: Any) -> bytes:
        file = io.BytesIO()
        picture().save(file, "JPEG", **options)
        return file.getvalue()

    plain = made()
    assert is_bare(plain)
    assert is_bare(made(progressive=True, dpi=(300, 300)))
    assert read_metadata(plain).empty
    assert evidence_of(open_image(plain)) == read_evidence(plain)
    for more in (
        {"exif": Image.Exif()},
        {"comment": b"Steps: 1"},
        {"xmp": xmp("").encode()},
        {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()},
    ):
        assert not is_bare(made(**more))
    for kind in range(0xE0, 0xF0):  # before the pixels, whatever it is
        assert not is_bare(plain[:2] + bytes([0xFF, kind, 0, 6]) + b"text" + plain[2:])
    for end in range(2, plain.index(b"\xff\xda")):
        assert not is_bare(plain[:end])
    said = evidence_of(open_image(jpeg(comment=WEBUI.encode())))
    assert said.declared == GENERATED
    hidden = plain + b"\0\0\1\0jumb"  # perhaps a manifest, which then is looked for
    assert evidence_of(open_image(hidden)) == read_evidence(hidden)
    with pytest.raises(GanscopeError, match=r"nowhere\.pem"):
        evidence_of(open_image(plain), Path("nowhere.pem"))


# --- settings that generators write ---


def test_webui_parameters_are_generated() -> None:
    found = read_evidence(png(parameters=WEBUI))
    assert (found.declared, found.trust) == (GENERATED, PLAIN)
    assert (found.seed, found.model, found.prompt) == ("123", "dream_v8", "a cat, Steps: many")
    (finding,) = (f for f in found.findings if f.declared == GENERATED)
    assert finding.details["negative prompt"] == "dog"
    assert finding.details["Lora hashes"] == "x: 1, y: 2"


@pytest.mark.parametrize(
    ("more", "declared"),
    [
        (", Denoising strength: 0.5", EDITED),
        (", Denoising strength: 0.5, Hires upscale: 2, Hires steps: 10", GENERATED),
        (", ADetailer denoising strength: 0.4", GENERATED),
        (", Denoising strength: 0.7, Mask blur: 4", EDITED),
    ],
)
def test_denoising_strength_edits_but_for_a_second_pass(more: str, declared: str) -> None:
    found = read_evidence(png(parameters=WEBUI + more))
    assert found.declared == declared
    if declared == EDITED:
        assert "edited from a loaded picture" in found.reason


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("container", ["JPEG", "WEBP"])
def test_webui_parameters_in_exif_in_either_order_of_bytes(order: str, container: str) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + WEBUI.encode(order)
    picture().save(file, container, exif=exif)
    found = read_evidence(file.getvalue())
    assert (found.declared, found.model) == (GENERATED, "dream_v8")


@pytest.mark.parametrize(
    "text",
    ["a photo; Steps: 20 on the stairs", "Steps: 20, then a walk", "Seed: 1", "{}", "[1]", ""],
)
def test_prose_declares_nothing(text: str) -> None:
    assert read_evidence(png(parameters=text, Comment=text)).declared == NOTHING


OTHERS = {
    "InvokeAI": {
        "invokeai_metadata": json.dumps(
            {
                "generation_mode": "sdxl_txt2img",
                "positive_prompt": "cat",
                "seed": 5,
                "model": {"name": "m"},
            }
        )
    },
    "NovelAI": {
        "Software": "NovelAI",
        "Source": "m",
        "Comment": json.dumps({"prompt": "cat", "uc": "dog", "seed": 5, "steps": 28}),
    },
    "SwarmUI": {
        "parameters": json.dumps({"sui_image_params": {"prompt": "cat", "model": "m", "seed": 5}})
    },
    "Fooocus": {
        "parameters": json.dumps(
            {"prompt": "cat", "seed": 5, "base_model": "m", "version": "Fooocus v2.5"}
        )
    },
    "Draw Things": {
        "XMP": xmp(
            "<exif:UserComment><rdf:Alt><rdf:li>"
            + json.dumps(
                {"c": "cat", "uc": "", "model": "m", "seed": 5, "sampler": "x", "strength": 1}
            )
            + "</rdf:li></rdf:Alt></exif:UserComment>"
        )
    },
}
LOADED = {
    "InvokeAI": ("sdxl_txt2img", "sdxl_img2img"),
    "NovelAI": ('"steps"', '"request_type": "Img2ImgRequest", "steps"'),
    "SwarmUI": ('"seed"', '"initimage": "x", "seed"'),
    "Draw Things": ('"strength": 1', '"strength": 0.6'),
}


@pytest.mark.parametrize("program", sorted(OTHERS))
def test_other_programs_settings(program: str) -> None:
    found = read_evidence(png(**OTHERS[program]))
    assert (found.declared, found.by) == (GENERATED, program)
    assert (found.prompt, found.seed, found.model) == ("cat", "5", "m")
    if program in LOADED:
        old, new = LOADED[program]
        assert old in "".join(OTHERS[program].values())
        edited = read_evidence(png(**{k: v.replace(old, new) for k, v in OTHERS[program].items()}))
        assert edited.declared == EDITED


def test_older_invokeai() -> None:
    dream = read_evidence(png(Dream='"a cat" -s 50 -S 77 -W 512 -H 512'))
    assert (dream.declared, dream.seed, dream.prompt) == (GENERATED, "77", "a cat")
    second = {
        "model_weights": "sd",
        "image": {"type": "txt2img", "seed": 3, "prompt": [{"prompt": "p"}]},
    }
    found = read_evidence(png(**{"sd-metadata": json.dumps(second)}))
    assert (found.declared, found.seed, found.prompt) == (GENERATED, "3", "p")


def test_midjourneys_job() -> None:
    job = "Job ID: 0f6d3b3e-6d0e-4a70-8a54-7a6f6bb2d0c1"
    found = read_evidence(png(Description=f"a red fox --ar 3:2 {job}"))
    assert (found.declared, found.by) == (GENERATED, "Midjourney")
    assert found.prompt == "a red fox --ar 3:2"
    assert read_evidence(png(Description=f"a fox {job}", Author="fox")).declared == GENERATED
    for text in (f"Print {job}", f"Order 7, {job}", f"{job} --ar 3:2, as ordered"):
        assert read_evidence(png(Description=text, Comment=text)).declared == NOTHING


def test_a_graph_that_resamples_a_picture_samples_nothing() -> None:
    nodes = {
        "load": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "small": {"class_type": "ImageResampler", "inputs": {"image": ["load", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["small", 0]}},
    }
    assert read_evidence(png(prompt=json.dumps(nodes))).declared == NOTHING


# --- ComfyUI ---


def graph(**changes: Any) -> dict[str, Any]:
    """A graph of words alone; changes: node -> its new inputs."""
    nodes: dict[str, Any] = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
        "words": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat", "clip": ["model", 1]}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 9,
                "steps": 20,
                "denoise": 1.0,
                "model": ["model", 0],
                "positive": ["words", 0],
                "negative": ["words", 0],
                "latent_image": ["empty", 0],
            },
        },
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sample", 0], "vae": ["model", 2]},
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0]}},
        "load": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "encode": {
            "class_type": "VAEEncode",
            "inputs": {"pixels": ["load", 0], "vae": ["model", 2]},
        },
        "control": {
            "class_type": "ControlNetApply",
            "inputs": {"conditioning": ["words", 0], "image": ["load", 0], "strength": 1.0},
        },
        "size": {"class_type": "GetImageSize", "inputs": {"image": ["load", 0]}},
        "second": {
            "class_type": "KSampler",
            "inputs": {"seed": 1, "model": ["model", 0], "latent_image": ["sample", 0]},
        },
    }
    for node, inputs in changes.items():
        nodes[node]["inputs"] |= inputs
    return nodes


GRAPHS: dict[str, tuple[dict[str, Any], str]] = {
    "words alone": (graph(), GENERATED),
    "a loaded picture's latent": (
        graph(sample={"latent_image": ["encode", 0], "denoise": 0.5}),
        EDITED,
    ),
    "shaped by a loaded picture": (graph(sample={"positive": ["control", 0]}), GENERATED),
    "as large as a loaded picture": (graph(empty={"width": ["size", 0]}), GENERATED),
    "two samplers": (graph(decode={"samples": ["second", 0]}), GENERATED),
    "a sampler, but not above what is saved": (graph(save={"images": ["load", 0]}), NOTHING),
    "links in a circle": (
        graph(sample={"latent_image": ["second", 0]}, decode={"samples": ["second", 0]}),
        GENERATED,
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_comfyui_graphs(name: str) -> None:
    nodes, declared = GRAPHS[name]
    found = read_evidence(png(prompt=json.dumps(nodes)))
    assert found.declared == declared
    if declared != NOTHING:
        assert (found.by, found.model, found.prompt) == ("ComfyUI", "m.safetensors", "cat")
        assert found.seed in ("9", "1")
    else:
        assert "no sampler" in found.findings[0].says


def test_a_drawn_graph_of_comfyui_is_read_where_no_other_is() -> None:
    nodes = [
        {"id": 1, "type": "EmptyLatentImage", "mode": 0},
        {
            "id": 2,
            "type": "KSampler",
            "inputs": [{"name": "latent_image", "link": 1}],
            "widgets_values": [42, "fixed"],
        },
        {"id": 3, "type": "VAEDecode", "inputs": [{"name": "samples", "link": 2}]},
        {"id": 4, "type": "SaveImage", "inputs": [{"name": "images", "link": 3}]},
    ]
    links = [[1, 1, 0, 2, 0, "LATENT"], [2, 2, 0, 3, 0, "LATENT"], [3, 3, 0, 4, 0, "IMAGE"]]
    found = read_evidence(png(workflow=json.dumps({"nodes": nodes, "links": links})))
    assert (found.declared, found.seed) == (GENERATED, "42")
    nodes[1]["mode"] = 4  # bypassed: what comes in goes out
    assert (
        read_evidence(png(workflow=json.dumps({"nodes": nodes, "links": links}))).declared
        == NOTHING
    )


def test_comfyuis_graph_in_the_exif_of_webp_is_no_camera() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x010F], exif[0x0110] = 'workflow:{"nodes": []}', f"prompt:{json.dumps(graph())}"
    exif.get_ifd(0x8769).update(EXPOSED)
    picture().save(file, "WEBP", exif=exif)
    found = read_evidence(file.getvalue())
    assert (found.declared, found.by) == (GENERATED, "ComfyUI")
    assert CAPTURED not in {f.declared for f in found.findings}


def test_a_graph_of_megabytes() -> None:
    nodes = graph() | {
        f"n{i}": {"class_type": "Note", "inputs": {"text": "x" * 150}} for i in range(12_000)
    }
    text = json.dumps(nodes)
    assert len(text) > 2 << 20
    start = time.process_time()
    (found,) = read_graphs([("PNG text", "prompt", text)])
    assert found.declared == GENERATED
    assert time.process_time() - start < 3


# --- XMP, IPTC, EXIF ---


@pytest.mark.parametrize(
    ("word", "declared"),
    [
        (IPTC + "trainedAlgorithmicMedia", GENERATED),
        ("TrainedAlgorithmicMedia", GENERATED),
        ("https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia/", GENERATED),
        ("digsrctype:trainedAlgorithmicMedia", GENERATED),
        (IPTC + "compositeWithTrainedAlgorithmicMedia", EDITED),
        (IPTC + "algorithmicallyEnhanced", NOTHING),
        (IPTC + "digitalCapture", CAPTURED),
        (IPTC + "digitalCreation", NOTHING),
        ("notTrainedAlgorithmicMedia", NOTHING),
    ],
)
@pytest.mark.parametrize("as_attribute", [True, False])
def test_digital_source_type(word: str, declared: str, as_attribute: bool) -> None:
    packet = (
        xmp("", f'i:DigitalSourceType="{word}"')
        if as_attribute
        else xmp(f"<i:DigitalSourceType>{word}</i:DigitalSourceType>")
    )
    found = read_evidence(png(XMP=packet))
    assert found.declared == declared
    file = io.BytesIO()
    picture().save(file, "JPEG", xmp=packet.encode())
    assert read_evidence(file.getvalue()).declared == declared


def test_a_source_type_of_an_ingredient_is_not_the_pictures() -> None:
    part = f'<rdf:li i:DigitalSourceType="{IPTC}trainedAlgorithmicMedia"/>'
    inner = f"<i:Ingredients><rdf:Bag>{part}</rdf:Bag></i:Ingredients>"
    assert read_evidence(png(XMP=xmp(inner))).declared == NOTHING


@pytest.mark.parametrize(
    ("credit", "declared"),
    [
        ("Made with Google AI", GENERATED),
        ("AI Generated", GENERATED),
        ("Edited with Google AI", EDITED),
        ("Ai Weiwei", NOTHING),
        ("Photograph made with care by AI Photo Agency, not by a machine", NOTHING),
    ],
)
def test_credit_lines(credit: str, declared: str) -> None:
    entry = b"\x1c\x02\x6e" + struct.pack(">H", len(credit)) + credit.encode()
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(entry)) + entry + b"\0" * (len(entry) % 2)
    content = jpeg()
    segment = b"Photoshop 3.0\0" + block
    content = (
        content[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    )
    assert read_evidence(content).declared == declared
    packet = xmp("", f'photoshop:Credit="{credit}"')
    assert read_evidence(png(XMP=packet)).declared == declared


@pytest.mark.parametrize(("label", "declared"), [("1", GENERATED), ("2", NOTHING), ("3", NOTHING)])
def test_the_chinese_label(label: str, declared: str) -> None:
    words = {"Label": label, "ContentProducer": "doubao", "ProduceID": "7"}
    inner = json.dumps(words).replace('"', "&quot;")
    found = read_evidence(png(XMP=xmp("", f'TC260:AIGC="{inner}"')))
    assert found.declared == declared
    assert any("Chinese label" in f.says and f.by == "doubao" for f in found.findings)
    comment = b"ASCII\0\0\0" + json.dumps({"AIGC": words}).encode()
    assert read_evidence(jpeg(inner={0x9286: comment})).declared == declared


def test_a_camera_needs_an_exposure() -> None:
    found = read_evidence(jpeg(CAMERA, EXPOSED))
    assert (found.declared, found.by, found.trust) == (CAPTURED, "Canon EOS R5", PLAIN)
    assert read_evidence(jpeg({0x010F: "EPSON", 0x0110: "Perfection V600"})).declared == NOTHING
    assert read_evidence(jpeg({0x0131: "Adobe Photoshop 25.0"})).declared == NOTHING


def test_a_programs_name_is_a_word_of_its_own() -> None:
    assert read_evidence(jpeg({0x0131: "Midjourney 7"})).by == "Midjourney"
    assert read_evidence(jpeg({0x0131: "Dallmeyer Scan"})).declared == NOTHING


def test_a_camera_does_not_hide_a_generator() -> None:
    comment = b"UNICODE\0" + WEBUI.encode("utf-16-be")
    found = read_evidence(jpeg(CAMERA, EXPOSED | {0x9286: comment}))
    assert found.declared == GENERATED
    assert "names a camera" in found.reason


def test_metadata_behind_the_pixels_of_a_png_is_read() -> None:
    content = png()
    chunk = b"tEXtparameters\0" + WEBUI.encode("latin-1")
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert read_evidence(content[:-12] + late + content[-12:]).declared == GENERATED


# --- the judgement ---


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iTXt packed", "tEXt"])
def test_text_of_megabytes_is_read(kind: str) -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text = json.dumps(
        graph() | {"note": {"class_type": "Note", "inputs": {"text": "x" * 3_000_000}}}
    )
    if kind.startswith("iTXt"):
        info.add_itxt("prompt", text, zip="packed" in kind)
    else:
        info.add_text("prompt", text, zip=kind == "zTXt")
    picture().save(file, "PNG", pnginfo=info)
    found = read_evidence(file.getvalue())
    assert (found.declared, found.prompt) == (GENERATED, "cat")


def test_text_without_an_end_is_passed_over_and_the_rest_read() -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("Comment", "x" * (49 << 20), zip=True)
    info.add_text("parameters", WEBUI)
    picture().save(file, "PNG", pnginfo=info)
    found = read_evidence(file.getvalue())
    assert found.declared == GENERATED
    assert any("passed over" in f.says for f in found.findings)


def test_the_strongest_declaration_counts_then_the_best_trusted() -> None:
    def finding(declared: str, trust: str = PLAIN, by: str = "", seed: str = "") -> Finding:
        return Finding(where=by, says="", declared=declared, trust=trust, by=by, seed=seed or None)

    found = judge([finding(CAPTURED, KNOWN_ISSUER), finding(GENERATED, by="a"), finding(EDITED)])
    assert (found.declared, found.by, found.trust) == (GENERATED, "a", PLAIN)
    found = judge([finding(GENERATED, PLAIN, "a", "1"), finding(GENERATED, UNCHECKED, "b")])
    assert (found.by, found.trust) == ("b", UNCHECKED)
    assert found.seed is None  # a signature does not vouch for what plain text says
    assert judge([]) == Evidence()


def test_text_is_made_safe() -> None:
    assert clean("a\x1b[31mb\ud800\u202ec\r\nd") == "a\\x1b[31mb?\\x202ec\nd"
    assert len(clean("x" * 10**6)) < 30_000
    json.dumps(read_evidence(png(parameters=WEBUI)).as_dict()).encode()


# --- invisible watermarks ---


@pytest.mark.skipif(not watermarks.watermarks_installed(), reason="invisible-watermark is missing")
@pytest.mark.parametrize("model", sorted(watermarks.MARKS))
def test_invisible_watermarks(model: str, astronaut: np.ndarray, tmp_path: Path) -> None:
    decoder = watermarks._decoder()
    bits = [int(bit) for bit in watermarks.MARKS[model]]
    hidden = decoder(watermarks=bits, wmLen=len(bits)).encode(astronaut[..., ::-1].copy())
    Image.fromarray(hidden[..., ::-1]).save(tmp_path / "marked.png")
    found = evidence_of(open_image(tmp_path / "marked.png"))
    assert (found.declared, found.by, found.trust) == (GENERATED, model, PATTERN)
    assert watermarks.find_watermark(astronaut) is None
    assert watermarks.find_watermark(np.zeros_like(astronaut)) is None
    Image.fromarray(astronaut).save(tmp_path / "plain.png")
    marked, plain = inspect_images(InspectSettings(paths=(str(tmp_path),), watermarks=True))
    assert marked.evidence.by == model
    assert plain.remarks == ("no invisible watermark was found",)


# --- the command ---


def test_inspect_leaves_torch_alone_and_is_quick(tmp_path: Path) -> None:
    """A loose bound on the machine's own time, which others use, too; most goes to `--help`."""
    (tmp_path / "made.png").write_bytes(png(parameters=WEBUI))
    code = (
        "import sys; sys.argv = ['ganscope', 'inspect', 'made.png', '--json']\n"
        "from ganscope.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'cv2', 'c2pa', 'sklearn'} & set(sys.modules)))"
    )
    best = 9.0
    for _ in range(3):
        start = os.times()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        end = os.times()
        best = min(
            best,
            end.children_user + end.children_system - start.children_user - start.children_system,
        )
    said, loaded = done.stdout.splitlines()
    assert json.loads(said)["declared"] == GENERATED
    assert loaded == "[]"
    assert best < 1.5


def test_inspect_goes_on_after_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(png(parameters=WEBUI))
    (tmp_path / "c.jpg").write_text("<html>moved</html>")
    first, second, third = inspect_images(InspectSettings(paths=(str(tmp_path),)))
    assert first.error == "the file is empty"
    assert second.evidence.declared == GENERATED
    assert third.error == "not an image, but a web page"


SAID = {
    "c2pa-openai.png": (GENERATED, UNCHECKED, "OpenAI OpCo, LLC"),
    "c2pa-google.jpg": (GENERATED, UNCHECKED, "Google LLC"),
    "c2pa-adobe-composite.png": (EDITED, UNCHECKED, "Adobe Inc."),
    "c2pa-other.jpg": (NOTHING, None, None),
    "iptc-midjourney.png": (GENERATED, PLAIN, None),
    "iptc-google-credit.jpg": (GENERATED, PLAIN, "Google AI"),
    "iptc-composite.jpg": (EDITED, PLAIN, "Google AI"),
    "iptc-other.jpg": (GENERATED, PLAIN, None),
    # its denoising strength is that of a second pass ("Hires upscale"), from 512 to 1024 pixels
    "webui-parameters.png": (GENERATED, PLAIN, "web UI (A1111 or kin)"),
    "comfyui-workflow.png": (NOTHING, None, None),
}


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="set GANSCOPE_SHARED_SAMPLES to a folder of makers' own files"
)
@pytest.mark.parametrize("name", SAID)
def test_makers_own_files(name: str) -> None:
    found = read_evidence((SAMPLES / name).read_bytes(), name)
    assert (found.declared, found.trust, found.by) == SAID[name]
