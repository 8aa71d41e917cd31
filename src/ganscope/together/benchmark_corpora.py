"""Corpora that a benchmark has made for it, a generator each."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ganscope.config import BenchmarkSettings, GenerateSettings, plain
from ganscope.datasets.layouts import MANIFEST
from ganscope.datasets.writing import REQUEST
from ganscope.detector.benchmark.leave_one_out import CORPORA, only_corpora
from ganscope.errors import GanscopeError
from ganscope.files import next_free, read_json
from ganscope.generator.by_name import open_generator
from ganscope.generator.sampling import generate_corpus

if TYPE_CHECKING:
    from rich.progress import Progress


def with_corpora(settings: BenchmarkSettings, bar: "Progress") -> BenchmarkSettings:
    """The settings with a corpus of each of their generators, made now or by an earlier try."""
    if not settings.generator:
        return settings
    name = "leave-one-out" if settings.train else "benchmark"
    out = settings.out or next_free(Path(name), lambda p: p.exists() and not only_corpora(p))
    made = []
    for name in settings.generator:
        plan = GenerateSettings(
            n=settings.n or 500,
            generator=name,
            real=settings.real or "photographs",
            seed=settings.seed,
            device=settings.device,
        )
        generator = open_generator(plan)
        folder = out / CORPORA / generator.label
        if folder in made:
            raise GanscopeError(
                f"--generator {name}: another one is called {generator.label}, too; rename its "
                "file, folder or function"
            )
        if (folder / MANIFEST).exists():
            before = read_json(folder / REQUEST, f"delete {folder} and run the command again")
            asked = plain(plan) | {"weights": generator.weights}
            other = [
                k
                for k in ("n", "generator", "real", "seed", "weights")
                if before.get(k) != asked[k]
            ]
            if other:
                raise GanscopeError(
                    f"{folder} was made with another {', '.join(other)}; name another folder with "
                    "--out"
                )
        else:
            task = bar.add_task(f"generating with {name}", total=plan.n, note="")
            generate_corpus(
                replace(plan, out=folder),
                lambda done, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )
        made.append(folder)
    corpora = (*settings.corpora, *made)
    return replace(settings, out=out, corpora=corpora, generator=(), n=None, real=None)
