"""The settings that programs write into the pictures that they generate: the web UI of A1111 and
its kin, Fooocus, InvokeAI, NovelAI, SwarmUI, Draw Things, and JSON of others that is alike.

ComfyUI's graphs have a module of their own.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ganscope.detector.evidence.metadata import Metadata, Text
from ganscope.detector.evidence.record import (
    EDITED,
    GENERATED,
    LONGEST_JSON,
    Finding,
    as_json,
    clean,
    said,
)

FROM_IMAGE = "edited from a loaded picture"


def read_parameters(metadata: Metadata) -> Iterator[Finding]:
    """What texts with settings of a generation say."""
    for text in metadata.texts:
        if len(text.text) > LONGEST_JSON:
            yield Finding(
                where=f"{text.where} {text.key}", says=f"{len(text.text):,} characters: not read"
            )
            continue
        data = as_json(text.text)
        if isinstance(data, dict):
            for read in READERS:
                found = read(metadata, text, data)
                if found:
                    yield found
                    break
        elif found := _webui(text) or _dream(text):
            yield found


LONGEST_LINE = 200_000
"""Characters from the end in which a line of settings is looked for."""
_LINE = re.compile(r"(?:^|\n) {0,9}(?=Steps: \d{1,9},)")
_PAIR = re.compile(r'\s{0,9}(\w[\w \-/]{0,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def _webui(text: Text) -> Finding | None:
    """The lines that A1111's web UI, Forge, SD.Next, Civitai, Fooocus and others write: a prompt,
    "Negative prompt: ...", and "Steps: 20, Sampler: Euler a, Seed: 1, ...".
    """
    begin = _last(text.text)
    if begin is None:
        return None
    line = text.text[begin:].strip()[:100_000].replace("\n", ", ")
    pairs = {key.strip(): value.strip('" ') for key, value in _PAIR.findall(line)}
    if not ("Sampler" in pairs or "Seed" in pairs):
        return None
    prompt, _, negative = text.text[:begin].partition("Negative prompt:")
    version = pairs.get("Version", "")
    by = (
        "Fooocus"
        if "fooocus" in version.lower()
        else "Forge"
        if re.match(r"f\d", version)
        else "ComfyUI"
        if version == "ComfyUI"
        else "web UI (A1111 or kin)"
    )
    # The second pass of a picture made from words ("hires fix") has a denoising strength, too.
    second_pass = any(key.startswith(("Hires", "First pass")) for key in pairs)
    edited = ("Denoising strength" in pairs and not second_pass) or "Init image hash" in pairs
    return _finding(
        text,
        by,
        edited,
        prompt=prompt,
        negative=negative,
        model=pairs.get("Model") or pairs.get("Model hash"),
        seed=pairs.get("Seed"),
        details=pairs,
    )


def _last(text: str) -> int | None:
    """Where the last line of settings begins: a prompt may hold words like them."""
    skipped = max(len(text) - LONGEST_LINE, 0)
    found = None
    for found in _LINE.finditer(text, skipped):  # noqa: B007
        pass
    return found.end() if found else None


def _dream(text: Text) -> Finding | None:
    """InvokeAI's first form: "a cat -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms"."""
    if text.key != "Dream":
        return None
    prompt, dash, options = text.text[:100_000].partition('" ')
    if not dash:
        prompt, dash, options = text.text[:100_000].partition(" -")
        options = f"-{options}"
    seed = re.search(r"-S\s*(\d+)", options)
    edited = bool(re.search(r"(?:^|\s)(?:-I|--init_img)\b", options))
    return _finding(
        text, "InvokeAI", edited, prompt=prompt.strip('" '), seed=seed[1] if seed else None
    )


def _invoke(metadata: Metadata, text: Text, data: dict[str, Any]) -> Finding | None:
    image = data.get("image")
    if text.key == "sd-metadata" and isinstance(image, dict):  # its second form
        prompts = image.get("prompt")
        first = prompts[0] if isinstance(prompts, list) and prompts else prompts
        return _finding(
            text,
            "InvokeAI",
            image.get("type") == "img2img" or "init_image_path" in image,
            prompt=first.get("prompt") if isinstance(first, dict) else first,
            model=data.get("model_weights") or data.get("model"),
            seed=image.get("seed"),
            details=image,
        )
    if text.key not in ("invokeai_metadata", "invokeai"):
        return None
    model = data.get("model")
    if isinstance(model, dict):
        model = model.get("name") or model.get("model_name")
    mode = str(data.get("generation_mode") or "")
    if not (mode or data.get("positive_prompt") or "seed" in data):
        return None
    return _finding(
        text,
        "InvokeAI",
        bool(re.search(r"img2img|inpaint|outpaint", mode)) or "init_image" in data,
        prompt=data.get("positive_prompt"),
        negative=data.get("negative_prompt"),
        model=model,
        seed=data.get("seed"),
        details=data,
    )


def _novel(metadata: Metadata, text: Text, data: dict[str, Any]) -> Finding | None:
    named = metadata.text("PNG text", "Software") == "NovelAI" or "NovelAI" in metadata.text(
        "EXIF", "Software"
    )
    if not named or text.key not in ("Comment", "UserComment") or "prompt" not in data:
        return None
    request = str(data.get("request_type") or "")
    return _finding(
        text,
        "NovelAI",
        bool(re.search("Img2Img|Infill", request)),
        prompt=data.get("prompt"),
        negative=data.get("uc"),
        model=metadata.text("PNG text", "Source") or None,
        seed=data.get("seed"),
        details=data,
    )


def _swarm(metadata: Metadata, text: Text, data: dict[str, Any]) -> Finding | None:
    inner = data.get("sui_image_params")
    if not isinstance(inner, dict):
        return None
    return _finding(
        text,
        "SwarmUI",
        any(key in inner for key in ("initimage", "init_image", "initimagecreativity")),
        prompt=inner.get("prompt"),
        negative=inner.get("negativeprompt"),
        model=inner.get("model"),
        seed=inner.get("seed"),
        details=inner,
    )


def _draw_things(metadata: Metadata, text: Text, data: dict[str, Any]) -> Finding | None:
    if text.key != "UserComment" or not {"c", "uc"} & set(data) or "sampler" not in data:
        return None
    strength = data.get("strength")
    return _finding(
        text,
        "Draw Things",
        isinstance(strength, int | float) and not isinstance(strength, bool) and strength < 1,
        prompt=data.get("c"),
        negative=data.get("uc"),
        model=data.get("model"),
        seed=data.get("seed"),
        details=data,
    )


def _fooocus(metadata: Metadata, text: Text, data: dict[str, Any]) -> Finding | None:
    version = str(data.get("version") or data.get("Version") or "")
    software = metadata.text("EXIF", "Software")
    if not any(
        "fooocus" in word.lower() for word in (version, software, str(data.get("software")))
    ):
        return None
    lower = {str(key).lower().replace(" ", "_"): value for key, value in data.items()}
    return _finding(
        text,
        "Fooocus",
        bool(re.search("inpaint", str(lower.get("inpaint_mode", "")), re.I)),
        prompt=lower.get("prompt"),
        negative=lower.get("negative_prompt"),
        model=lower.get("base_model") or lower.get("base_model_name"),
        seed=lower.get("seed"),
        details=data,
    )


def _other(metadata: Metadata, text: Text, data: dict[str, Any]) -> Finding | None:
    """JSON with a prompt, a seed, and steps or a sampler: Easy Diffusion, diffusers scripts, ..."""
    lower = {str(key).lower().replace(" ", "_"): value for key, value in data.items()}
    if (
        not {"prompt", "seed"} <= lower.keys()
        or not {
            "steps",
            "num_inference_steps",
            "sampler",
            "sampler_name",
            "guidance_scale",
            "cfg_scale",
        }
        & lower.keys()
    ):
        return None
    return _finding(
        text,
        said(lower.get("app") or lower.get("software") or lower.get("generator")),
        any(lower.get(key) for key in ("init_image", "init_img", "denoising_strength")),
        prompt=lower["prompt"],
        negative=lower.get("negative_prompt"),
        model=lower.get("model") or lower.get("use_stable_diffusion_model"),
        seed=lower["seed"],
        details=data,
    )


READERS: tuple[Callable[[Metadata, Text, dict[str, Any]], Finding | None], ...] = (
    _invoke,
    _novel,
    _swarm,
    _draw_things,
    _fooocus,
    _other,
)
"""The first that knows a JSON text reads it. To add a program, add a function."""


def _finding(
    text: Text,
    by: str | None,
    edited: bool,
    *,
    prompt: object = None,
    negative: object = None,
    model: object = None,
    seed: object = None,
    details: dict[Any, Any] | None = None,
) -> Finding:
    told = {"negative prompt": negative, **dict(_scalars(details or {}))}
    skip = ("prompt", "negative_prompt", "uc", "c")
    return Finding(
        where=f"{text.where} {text.key}",
        says=f"{FROM_IMAGE if edited else 'generated'} by {by or 'an unnamed program'}",
        declared=EDITED if edited else GENERATED,
        by=by,
        model=said(model),
        seed=said(seed),
        prompt=said(prompt),
        details={
            clean(key, 80): value
            for key, value in ((k, said(v)) for k, v in told.items() if k not in skip)
            if value
        },
    )


def _scalars(data: dict[Any, Any]) -> Iterable[tuple[str, object]]:
    """The first hundred words and numbers of a JSON object."""
    return [(str(k), v) for k, v in list(data.items())[:100] if isinstance(v, str | int | float)]
