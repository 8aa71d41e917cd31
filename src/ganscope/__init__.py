"""ganscope: make fakes, train detectors on them, check photos, benchmark detectors.

The public functions load on first use, so that `import ganscope` is quick.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "GanscopeError": "ganscope.errors",
    "ImageError": "ganscope.errors",
    "open_image": "ganscope.images",
    "open_corpus": "ganscope.datasets.corpus",
    "audit_corpus": "ganscope.datasets.audit",
    "generate_corpus": "ganscope.generator.sampling",
    "make_fake": "ganscope.generator.sampling",
    "latents_of": "ganscope.generator.latent",
    "measure_diversity": "ganscope.generator.diversity",
    "train_generator": "ganscope.generator.training",
    "load_generator": "ganscope.generator.model",
    "train_detector": "ganscope.detector.training.recipes",
    "load_detector": "ganscope.detector.model",
    "score_images": "ganscope.detector.judging.scoring",
    "read_evidence": "ganscope.detector.evidence.evidence",
    "inspect_images": "ganscope.detector.evidence.inspection",
    "check_image": "ganscope.detector.judging.checking",
    "check_images": "ganscope.detector.judging.checking",
    "heatmap": "ganscope.detector.judging.heatmaps",
    "evaluate_scores": "ganscope.detector.judging.metrics",
    "benchmark_detectors": "ganscope.detector.benchmark.benchmark",
    "arms_race": "ganscope.together.arms_race",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # as slow as the command's own modules

        return version("ganscope")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ganscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
