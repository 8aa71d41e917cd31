"""ComfyUI's graphs: did the graph that wrote a file generate the picture, edit one that it loaded,
or merely save one?

Links are followed upwards from what saves. A sampler up there generates; one whose latent comes
from a loaded picture edits; where there is none, the picture was only loaded, treated and saved.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ganscope.detector.evidence.record import (
    EDITED,
    GENERATED,
    Finding,
    as_json,
    clean,
    said,
)

Node = dict[str, Any]
"""{"class_type": str, "inputs": {name: value, or [node, slot] for a link}}"""
Graph = dict[str, Node]

WIRES = re.compile(
    r"positive|negative|conditioning|model|clip|vae|control_net|noise|guider|sampler|sigmas|seed"
    r"|text|prompt|mask|width|height|batch_size|length"
)
"""Inputs that bring a sampler other things than the picture that it begins with."""
SHOWN = re.compile(r"ReferenceLatent|TextEncodeQwenImageEdit|Kontext.*Scale|ImageEdit", re.I)
"""Nodes by which a model is given the picture that it is to edit."""
SERVICES = re.compile(
    r"^(?:OpenAI(?:Dalle|GPTImage)|FluxPro|FluxKontext|Flux2|Gemini(?:Nano|Image)|Ideogram"
    r"|Stability(?:Stable|Text)|Recraft.*ToImage|LumaImage|Kling.*Image|MinimaxImage"
    r"|ByteDance(?:Image|Seedream)|RunwayTextToImage|Reve|Wan.*ToImageApi)"
)
"""Nodes that have a picture made by a service."""
SAMPLERS = 8
"""Samplers of a graph that are looked into, the nearest to what is saved."""
NODES = 20_000
"""Nodes of a graph that are looked at."""
NEAR = 3000
"""Nodes that are followed upwards from one; the largest graphs of people have some hundreds."""


def read_graphs(texts: Iterable[tuple[str, str, str]]) -> Iterator[Finding]:
    """What ComfyUI's graphs say; texts: (where, key, text). Of the graph that was run ("prompt")
    and its drawing ("workflow") the first is enough.
    """
    graphs: dict[str, tuple[str, Graph]] = {}
    for where, key, text in texts:
        kind, body = _kind(key, text)
        if kind:
            data = as_json(body)
            graph = _graph(data) if kind == "prompt" else _drawn(data)
            if graph:
                graphs.setdefault(kind, (f"{where} {key}", graph))
    for kind in ("prompt", "workflow"):
        if kind in graphs:
            yield _told(*graphs[kind])
            return


def _kind(key: str, text: str) -> tuple[str, str]:
    """Whether a text is a graph, and without the word before it that WebP's EXIF has."""
    found = re.match(r"\s*(prompt|workflow):\s*(?=\{)", text, re.IGNORECASE)
    if found:
        return found[1].lower(), text[found.end() :]
    return (key.lower(), text) if key.lower() in ("prompt", "workflow") else ("", text)


def _graph(data: Any) -> Graph:
    """A graph as it was run: {"3": {"class_type": "KSampler", "inputs": {...}}, ...}."""
    if not isinstance(data, dict):
        return {}
    return {
        str(name): {
            "class_type": str(node["class_type"]),
            "inputs": node["inputs"] if isinstance(node.get("inputs"), dict) else {},
        }
        for name, node in list(data.items())[:NODES]
        if isinstance(node, dict) and "class_type" in node
    }


def _drawn(data: Any) -> Graph:
    """A graph as it is drawn, brought to the form in which it is run; nodes that were switched off
    are left out or passed through.
    """
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        return {}
    links: dict[Any, list[Any]] = {}
    for link in data.get("links") or ():
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int | str):
            links[link[0]] = [str(link[1]), link[2]]
        elif isinstance(link, dict) and isinstance(link.get("id"), int | str):
            links[link["id"]] = [str(link.get("origin_id")), link.get("origin_slot")]
    inner = _subgraphs(data)
    graph: Graph = {}
    for node in data["nodes"][:NODES]:
        if not isinstance(node, dict) or node.get("mode") == 2:  # never run
            continue
        kind = str(node.get("type"))
        kind = inner.get(kind, kind)
        inputs: dict[str, Any] = {}
        for slot in node.get("inputs") or ():
            link = slot.get("link") if isinstance(slot, dict) else None
            if isinstance(link, int | str) and link in links:
                inputs[str(slot.get("name"))] = links[link]
        values = node.get("widgets_values")
        words = values.values() if isinstance(values, dict) else values
        for number, value in enumerate(words if isinstance(words, Iterable) else ()):
            inputs.setdefault(f"widget {number}", value)
        bypassed = node.get("mode") == 4
        graph[str(node.get("id"))] = {
            "class_type": "bypassed" if bypassed else kind,
            "inputs": inputs,
        }
    return graph


def _subgraphs(data: dict[str, Any]) -> dict[str, str]:
    """What stands for a subgraph: the kind of its sampler if it holds one."""
    definitions = data.get("definitions")
    found = {}
    for sub in (definitions.get("subgraphs") if isinstance(definitions, dict) else None) or ():
        if isinstance(sub, dict):
            kinds = [str(n.get("type")) for n in sub.get("nodes") or () if isinstance(n, dict)]
            samplers = [kind for kind in kinds if _samples(kind, {})]
            found[str(sub.get("id"))] = samplers[0] if samplers else "subgraph"
    return found


def _samples(kind: str, inputs: dict[str, Any]) -> bool:
    """Whether a node makes a picture, or its latent."""
    lower = kind.lower()
    if SERVICES.search(kind):
        return True
    if "sampler" in lower and not re.search(
        r"samplers?select|sampler(?:euler|dpm|lcm|lms|er_|sa_|solver)|samplerconfig|samplerparam"
        r"|samplername|samplerloader|selector|schedule|latentsampler|upsampler|downsampler"
        r"|resampler|settings",
        lower,
    ):
        return True
    named = {str(name).lower() for name in inputs}
    return bool(named & {"seed", "noise_seed"}) and {"steps", "model"} <= named


def _loads(kind: str) -> bool:
    return bool(re.search(r"load_?\s?image|image_?\s?load(?:er)?\b|imageloader", kind, re.I))


def _links(node: Node, skip: re.Pattern[str] | None = None) -> Iterator[str]:
    for name, value in node["inputs"].items():
        link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
        if link and not (skip and skip.search(str(name).lower())):
            yield str(value[0])


def _above(graph: Graph, begin: Iterable[str], only: bool = False) -> Iterator[str]:
    """Nodes from which links lead to these, and these, each once, the nearest first.

    only: follow no `WIRES`, and nothing above an empty latent.
    """
    open_ = deque(begin)
    seen: set[str] = set()
    while open_ and len(seen) < NEAR:
        name = open_.popleft()
        if name in seen or name not in graph:
            continue
        seen.add(name)
        yield name
        if not (only and "empty" in graph[name]["class_type"].lower()):
            open_.extend(_links(graph[name], WIRES if only else None))


def _told(where: str, graph: Graph) -> Finding:
    saving = [n for n, node in graph.items() if re.search("save", node["class_type"], re.I)]
    if not saving:
        used = {link for node in graph.values() for link in _links(node)}
        saving = [n for n in graph if n not in used]
    above = list(_above(graph, saving))
    samplers = [n for n in above if _samples(graph[n]["class_type"], graph[n]["inputs"])]
    samplers = samplers[:SAMPLERS]
    kinds = sorted({graph[n]["class_type"] for n in graph})
    details = {"nodes": f"{len(graph):,}: {clean(', '.join(kinds), 2000)}"}
    if not samplers:
        loaded = any(_loads(graph[n]["class_type"]) for n in above)
        return Finding(
            where=where,
            says="saved by ComfyUI, whose graph has no sampler"
            + (": it loads a picture" if loaded else ""),
            by="ComfyUI",
            details=details,
        )
    edited = any(_edits(graph, name) for name in samplers)
    detail = _details(graph, samplers[0])
    for name in samplers[1:3]:  # the nearest may be a second pass that has less to say
        detail |= {k: v for k, v in _details(graph, name).items() if v and not detail[k]}
    details |= detail["details"]
    return Finding(
        where=where,
        says="edited from a loaded picture by a graph of ComfyUI"
        if edited
        else "generated by a graph of ComfyUI",
        declared=EDITED if edited else GENERATED,
        by="ComfyUI",
        model=detail["model"],
        seed=detail["seed"],
        prompt=detail["prompt"],
        details=details,
    )


def _edits(graph: Graph, sampler: str) -> bool:
    """Whether a sampler begins with a loaded picture, or is given one to edit."""
    node = graph[sampler]
    for name in _above(graph, _links(node, WIRES), only=True):
        if _loads(graph[name]["class_type"]):
            return True
    shown = [n for n in _above(graph, [sampler]) if SHOWN.search(graph[n]["class_type"])]
    return any(_loads(graph[n]["class_type"]) for n in _above(graph, shown))


def _details(graph: Graph, sampler: str) -> dict[str, Any]:
    """Model, seed, prompt and settings of a sampler, from the nearest node that has each."""
    node = graph[sampler]
    near = list(_above(graph, [sampler]))
    seed = _value(graph, near, r"^(?:noise_)?seed$", (int, float, str))
    model = _value(
        graph, near, r"ckpt_name|unet_name|model_name|^model$|^widget 0$", (str,), _is_model
    )
    positive = [
        str(value[0])
        for name, value in node["inputs"].items()
        if re.search("positive|prompt|conditioning|guider", str(name), re.I)
        and isinstance(value, list)
        and value
    ]
    texts = r"^(?:text|prompt|t5xxl|text_g|clip_l|string|value|positive|wildcard_text)$"
    prompt = _value(graph, [sampler], r"^(?:prompt|text|positive)$", (str,)) or _value(
        graph, list(_above(graph, positive)), texts, (str,), _is_prose
    )
    if prompt is None:  # a drawing names no values
        encoders = [
            n for n in _above(graph, positive) if "encode" in graph[n]["class_type"].lower()
        ]
        prompt = _value(graph, encoders, r"^widget 0$", (str,), _is_prose)
    if seed is None and any(str(k).startswith("widget") for k in node["inputs"]):
        first = node["inputs"].get("widget 0")
        seed = str(first) if isinstance(first, int) and not isinstance(first, bool) else None
    settings = {
        f"sampler {name}": said(value)
        for name, value in node["inputs"].items()
        if name in ("steps", "cfg", "sampler_name", "scheduler", "denoise")
    }
    return {
        "model": model,
        "seed": seed,
        "prompt": prompt,
        "details": {"sampler": clean(node["class_type"], 200)}
        | {name: value for name, value in settings.items() if value},
    }


def _value(
    graph: Graph, names: Iterable[str], pattern: str, kinds: tuple[type, ...], fits: Any = bool
) -> str | None:
    """The first input of a name like this that is no link, of these nodes."""
    for name in names:
        for key, value in graph[name]["inputs"].items():
            if (
                re.search(pattern, str(key).lower())
                and isinstance(value, kinds)
                and not isinstance(value, bool)
                and (isinstance(value, int | float) or fits(value))
            ):
                return said(value)
    return None


def _is_model(value: str) -> bool:
    return bool(re.search(r"\.(?:safetensors|ckpt|gguf|sft|pth?|bin)$", value.strip(), re.I))


def _is_prose(value: str) -> bool:
    return bool(value.strip()) and not _is_model(value)
