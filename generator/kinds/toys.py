"""Does a kind of GAN collapse? Mixtures of Gaussians in the plane, whose modes can be counted.

The published tables of the field are of these two toys. All kinds play with the same small
networks, data and steps, and rates that fall to 0 over the second half of them; critics have rates
of their own, and so has wgan-gp's penalty. What else differs is the loss.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from ganscope.averaged_weights import average_into
from ganscope.config import DiversitySettings, TrainGeneratorSettings
from ganscope.errors import GanscopeError
from ganscope.generator.kinds.adversarial import Adversarial
from ganscope.generator.kinds.architecture import DISCRIMINATOR, GENERATOR, Batch, Play
from ganscope.generator.kinds.architectures import architectures

LATENT_DIM, WIDTH, BATCH, EMA = 16, 128, 128, 0.999
RATES = {GENERATOR: 1e-3, DISCRIMINATOR: 1e-4}
"""First learning rates of kinds that play against a classifier."""
CRITIC_RATES = {GENERATOR: 1e-3, DISCRIMINATOR: 1e-3}
"""Of kinds whose critic must be near its best at every step."""
TUNED: dict[str, dict[str, Any]] = {"wgan-gp": {"gradient_penalty": 1.0}}
"""Settings of a kind where images ask for others than points."""
COUNTED = 2500
"""Samples that modes are counted in, as in the papers."""


@dataclass(frozen=True)
class Toy:
    """A mixture of equally likely Gaussians."""

    centres: np.ndarray
    """(modes, 2)."""
    std: float

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` points (n, 2)."""
        chosen = self.centres[rng.integers(len(self.centres), size=n)]
        return chosen + self.std * rng.standard_normal((n, 2))


_turns = 2 * np.pi * np.arange(8) / 8
_ticks = range(-4, 5, 2)
toys = {
    "ring": Toy(np.stack([np.cos(_turns), np.sin(_turns)], 1), 0.01),
    "grid": Toy(np.array([(x, y) for x in _ticks for y in _ticks], float), 0.05),
}
"""8 Gaussians on the unit circle and 25 at -4, -2, 0, 2, 4 in x and y, with PacGAN's figures
(Lin et al. 2018, arXiv:1712.04086)."""


@dataclass(frozen=True)
class ModeCount:
    """How much of a mixture of Gaussians a sample reaches."""

    modes: int
    """Centres that are nearest to at least one sample of high quality."""
    high_quality: float
    """Share of the samples within 3 standard deviations of their nearest centre."""


def count_modes(samples: np.ndarray, toy: Toy) -> ModeCount:
    """Count the modes that samples (N, 2) reach.

    VEEGAN's convention (Srivastava et al. 2017, arXiv:1705.07761), which PacGAN shares: a sample is
    of high quality within 3 standard deviations of its nearest centre, and a single such sample
    covers a mode. The count grows with N; the papers' tables are of 2500 samples.
    """
    distances = cdist(samples, toy.centres)
    good = distances.min(1) <= 3 * toy.std
    return ModeCount(len(np.unique(distances.argmin(1)[good])), float(good.mean()))


class Stack(nn.Module):
    """Dense networks side by side, none of which sees another: (S * N, inputs) -> (S * N, outputs),
    or (S * N,) if there is one output. All S trainings are done at once.
    """

    def __init__(self, count: int, sizes: Sequence[int], slope: float, before: float, after: float):
        super().__init__()
        self.count, self.slope, self.before, self.after = count, slope, before, after
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            reach = inputs**-0.5  # as nn.Linear begins
            self.weights.append(torch.empty(count, inputs, outputs).uniform_(-reach, reach))
            self.biases.append(torch.empty(count, 1, outputs).uniform_(-reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (self.count, -1)) * self.before
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = leaky_relu(x, self.slope) if i else x
            x = torch.baddbmm(bias, x, weight)
        return (x * self.after).flatten(0, 1).squeeze(1)


def train_toy(
    name: str,
    toy: str,
    seeds: int = 5,
    seed: int = 0,
    steps: int = 10_000,
    report: Callable[[int], None] | None = None,
    **settings: Any,
) -> np.ndarray:
    """Train a kind of GAN on a toy, `seeds` times at once; returns `COUNTED` samples of each
    averaged generator, (seeds, N, 2).

    settings: of `TrainGeneratorSettings` (loss, unroll, instance_noise, ...). `report` is called
    with the steps done. Raises `GanscopeError` for a kind that does not play against a
    discriminator or must be told classes.
    """
    architecture = architectures[name]
    if not isinstance(architecture, Adversarial) or not architecture.any_shape:
        known = [
            key
            for key, a in sorted(architectures.items())
            if isinstance(a, Adversarial) and a.any_shape
        ]
        raise GanscopeError(f"{name} does not play on toys; those that do: {', '.join(known)}")
    tuned = {**TUNED.get(name, {}), **settings}
    wish = TrainGeneratorSettings(real=toy, generator=name, steps=steps, **tuned)
    architecture.check(wish)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    hidden, far = [WIDTH, WIDTH], float(np.abs(toys[toy].centres).max())
    networks = {
        GENERATOR: Stack(seeds, [LATENT_DIM, *hidden, 2], 0.0, 1.0, far),
        DISCRIMINATOR: Stack(seeds, [2, *hidden, 1], 0.2, 1 / far, 1.0),
    }
    average = copy.deepcopy(networks[GENERATOR])
    rates = CRITIC_RATES if architecture.draws > 1 else RATES
    optimizers = {k: architecture.optimizer(v, rates[k]) for k, v in networks.items()}
    play = Play(
        dict(networks), optimizers, lambda x: x.backward(), wish, torch.device("cpu"), LATENT_DIM
    )
    for step in range(steps):
        play.step = step
        for key, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[key] * min(1, 2 * (1 - step / steps))
        points = [toys[toy].draw(seeds * BATCH, rng) for _ in range(architecture.draws)]
        architecture.step(play, [Batch(torch.from_numpy(p).float()) for p in points])
        average_into(average, networks[GENERATOR], min(EMA, 1 - 10 / (10 + step)))
        if report:
            report(step + 1)
    with torch.no_grad():
        made = average(play.z(seeds * COUNTED))
    return made.unflatten(0, (seeds, COUNTED)).numpy().astype(np.float64)


@dataclass(frozen=True)
class ToyResult:
    """Mode counts of several trainings on one toy: means and standard deviations."""

    architecture: str
    toy: str
    modes: float
    modes_deviation: float
    of: int
    """Modes that there are."""
    high_quality: float
    high_quality_deviation: float
    seeds: int


def play_toys(
    settings: DiversitySettings, report: Callable[[int], None] | None = None
) -> list[ToyResult]:
    """Train an architecture `seeds` times on each toy and count its modes.

    `report` is called with the steps done so far on all toys. Raises `GanscopeError` as `train_toy`
    does.
    """
    further: dict[str, Any] = {} if settings.loss is None else {"loss": settings.loss}
    found = []
    for number, (name, toy) in enumerate(toys.items()):
        samples = train_toy(
            settings.what,
            name,
            settings.seeds,
            settings.seed,
            settings.steps,
            report and partial(_report_after, report, number * settings.steps),
            **further,
        )
        counts = [count_modes(one, toy) for one in samples]
        modes, good = ([getattr(c, k) for c in counts] for k in ("modes", "high_quality"))
        found.append(
            ToyResult(
                settings.what,
                name,
                float(np.mean(modes)),
                float(np.std(modes)),
                len(toy.centres),
                float(np.mean(good)),
                float(np.std(good)),
                settings.seeds,
            )
        )
    return found


def _report_after(report: Callable[[int], None], before: int, done: int) -> None:
    report(before + done)
