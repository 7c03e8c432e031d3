"""How steep a few-step generator is, and a reward behind it: slopes along random directions, against noise level.

    one step      G(x_t) = f(x_t, t), at the noisy inputs of a sampler of N steps
    all steps     G(x_T), the whole of a sampler of n steps, noise between steps held fixed

in latents, in pixels from 0 to 1, and in each reward of the image. See `lasro.functional.local_lipschitz`.

Shape legend: D directions, B = 1 + D: x itself and what it is moved to; C, H, W latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lasro.errors import RewardError
from lasro.functional.local_lipschitz import (
    random_directions,
    root_mean_square,
    slope_along_gradient,
    slopes,
    steepest_slope,
)
from lasro.models.device import device_memory
from lasro.models.latent_codec import MEMORY_ADVICE
from lasro.num_steps import NumSteps
from lasro.training.sampling import draw_noises, generator_for, sample_steps
from lasro_client.analysis.measured import measure_prompts
from lasro_client.analysis.outputs import RewardSource, pixels
from lasro_client.analysis.subject import Subject, check_finite
from lasro_client.evaluation.paired_statistics import estimate
from lasro_client.evaluation.score_prompts import Progress

ONE, ALL = "one_step", "all_steps"
SPACES = ("latents", "images")
MAX_FAILED = 0.5
"""Share of the directions of which a reward may not be known, before its slope at a point is not either."""
Measurement = dict[str, Any]
"""`slopes`: of latents, images and each reward, a number or None for each direction. `gradients`: by reward, the
slope along its gradient, where it is asked for."""


class Probe(NamedTuple):
    """How a map is looked at."""

    directions: int
    """D, random ones."""
    delta: float
    """How far a point is moved, as a share of its own root mean square."""
    rewards: RewardSource
    with_gradients: bool = False
    """Also the slope along the gradient of each reward; of torch functions."""


class Map(NamedTuple):
    """G and the point x at which it is looked at."""

    name: str
    """Of a row's measurement."""
    about: dict[str, Any]
    x_BCHW: Tensor
    """[1, C, H, W]."""
    call: Callable[[Tensor], Tensor]
    """From inputs [B, C, H, W] to clean latents."""


def lipschitz(
    subject: Subject, steps: Sequence[NumSteps], probe: Probe, out: Path, progress: Progress
) -> dict[str, Any]:
    """`rows`: of each policy and map the mean slope, its error over prompts and the steepest seen, in each output.

    Maps are one step at each noise level of the most of `steps`, and all steps of each. What is measured lies in `out`
    until all is. Raises RewardError where a reward scored nothing.
    """
    names = list(probe.rewards.names)
    about = subject.about | {"analysis": "lipschitz", "steps": list(steps), "rewards": names}
    about |= {"directions": probe.directions, "delta": probe.delta, "gradients": probe.with_gradients}
    about["latent_shape"] = list(subject.model.latent_shape)

    def measure(base: bool, index: int) -> dict[str, Measurement]:
        return _of_prompt(subject, base, index, steps, probe)

    found = measure_prompts(subject, out, about, measure, progress)
    d = math.prod(subject.model.latent_shape)
    rows: list[dict[str, Any]] = [
        {"policy": policy} | _row([each[name] for each in of_prompts], names, d)
        for policy, of_prompts in found.items()
        for name in of_prompts[0]
    ]
    for name in names:
        if all(row["rewards"][name]["mean"] is None for row in rows):
            raise RewardError(f"reward {name}: scored too few images to know its slope anywhere")
    return about | {"rows": rows}


def _of_prompt(
    subject: Subject, base: bool, index: int, steps: Sequence[NumSteps], probe: Probe
) -> dict[str, Measurement]:
    generator = generator_for(subject.seed, "lipschitz", index)
    found: dict[str, Measurement] = {}
    for each in _maps(subject, base, index, steps, generator):
        u_DCHW = random_directions(probe.directions, subject.model.latent_shape, generator).to(subject.model.device)
        size = probe.delta * root_mean_square(each.x_BCHW)
        x_BCHW = torch.cat([each.x_BCHW, each.x_BCHW + size * u_DCHW])
        with torch.no_grad(), device_memory("drawing moved images", f"set model.max_batch lower, or {MEMORY_ADVICE}"):
            outputs = _outputs(subject, index, each, x_BCHW, probe.rewards)
        found[each.name] = each.about | {"slopes": {name: _slopes(y_B, size) for name, y_B in outputs.items()}}
        if probe.with_gradients:
            found[each.name]["gradients"] = _gradients(subject, index, each, probe.rewards)
    return found


def _maps(subject: Subject, base: bool, index: int, steps: Sequence[NumSteps], generator: torch.Generator) -> list[Map]:
    model, prompt = subject.model, subject.prompts[index]
    noises = draw_noises(model, 1, generator, max(steps))
    conditioning = model.embed([prompt.text], base)

    def rows(count: int) -> Any:
        return conditioning.rows(torch.zeros(count, dtype=torch.int64, device=model.device))

    def one(step: Any, x_BCHW: Tensor) -> Tensor:
        return model.predict_clean(x_BCHW, step, rows(len(x_BCHW)), base)

    def whole(n: NumSteps, x_BCHW: Tensor) -> Tensor:
        fixed = [noise.expand(len(x_BCHW), -1, -1, -1) for noise in noises[1:n]]
        taken = sample_steps(model, [x_BCHW, *fixed], rows(len(x_BCHW)), base, [n], gradient_steps=n)
        return taken[0][-1].z_BCHW

    with torch.no_grad():
        path = sample_steps(model, noises, conditioning, base, [max(steps)])[0]
    return [
        *(
            Map(
                f"{ONE} {step.index}",
                {"map": ONE, "step": step.index, "time": step.time},
                at.x_t_BCHW,
                partial(one, step),
            )
            for step, at in zip(model.steps(max(steps)), path, strict=True)
        ),
        *(Map(f"{ALL} {n}", {"map": ALL, "num_steps": n}, noises[0], partial(whole, n)) for n in steps),
    ]


def _outputs(subject: Subject, index: int, each: Map, x_BCHW: Tensor, rewards: RewardSource) -> dict[str, Tensor]:
    """Of latents, images and each reward [B, ...]."""
    parts: dict[str, list[Tensor]] = {}
    model, prompt = subject.model, subject.prompts[index]
    for part in subject.batches(len(x_BCHW)):
        z_BCHW = check_finite(each.call(x_BCHW[part]), prompt)
        images_BChw = pixels(model, z_BCHW)
        outputs = {"latents": z_BCHW, "images": images_BChw}
        outputs |= {_reward(name): r_B for name, r_B in rewards(images_BChw, prompt).items()}
        for name, y_B in outputs.items():
            parts.setdefault(name, []).append(y_B.cpu())
    return {name: torch.cat(of_name) for name, of_name in parts.items()}


def _reward(name: str) -> str:
    """What its slopes are called; one of the rewards may be called `images`."""
    return f"reward {name}"


def _slopes(y_B: Tensor, size: float) -> list[float | None]:
    found_D = slopes(y_B[0], y_B[1:], size)
    return [value if math.isfinite(value) else None for value in found_D.tolist()]


def _gradients(subject: Subject, index: int, each: Map, rewards: RewardSource) -> dict[str, float]:
    x_BCHW = each.x_BCHW.detach().requires_grad_()
    with torch.enable_grad(), device_memory("a reward's gradient through all steps", MEMORY_ADVICE):
        r = rewards(pixels(subject.model, each.call(x_BCHW)), subject.prompts[index])
        grads = {name: torch.autograd.grad(r_B.sum(), x_BCHW, retain_graph=True)[0] for name, r_B in r.items()}
    return {name: slope_along_gradient(gradient) for name, gradient in grads.items()}


def _row(of_prompts: Sequence[Measurement], rewards: Sequence[str], d: int) -> dict[str, Any]:
    first = {key: value for key, value in of_prompts[0].items() if key not in ("slopes", "gradients")}
    row: dict[str, Any] = first | {name: _summary([each["slopes"][name] for each in of_prompts]) for name in SPACES}
    row["rewards"] = {}
    for name in rewards:
        found = [each["slopes"][_reward(name)] for each in of_prompts]
        row["rewards"][name] = _summary(found) | {"steepest": _steepest(found, d)}
        if "gradients" in of_prompts[0]:
            along = estimate([each["gradients"][name] for each in of_prompts])
            row["rewards"][name]["along_gradient"] = along.as_dict()
    return row


def _known(slopes_D: Sequence[float | None]) -> list[float]:
    known = [slope for slope in slopes_D if slope is not None]
    return known if len(known) >= MAX_FAILED * len(slopes_D) else []


def _summary(of_prompts: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Mean over directions, then mean and standard error over prompts; the steepest of all."""
    known = [_known(each) for each in of_prompts]
    means = estimate([math.fsum(each) / len(each) if each else None for each in known])
    every = [slope for each in known for slope in each]
    return means.as_dict() | {"max": max(every, default=None), "n": means.n, "failed": means.failed}


def _steepest(of_prompts: Sequence[Sequence[float | None]], d: int) -> Mapping[str, float | None]:
    known = [_known(each) for each in of_prompts]
    return estimate([steepest_slope(torch.tensor(each), d) if each else None for each in known]).as_dict()
