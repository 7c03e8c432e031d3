"""Few-step models of every sampler against their own stock pipelines, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from few_step_models import (
    PROMPT,
    SDXL_BASE,
    TRAILING,
    TURBO,
    Published,
    difference,
    load,
    our_latents,
    stock_latents,
    stock_pipeline,
    with_scheduler,
)
from tiny_model import diffusers, write_tiny_model

from lasro.config import LoraSettings, SamplingSettings
from lasro.errors import ModelError
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_groups, sample_latents

DMD2 = (999, 749, 499, 249)


def from_config(kind: str, **changes: Any) -> Any:
    return lambda config: getattr(diffusers, kind).from_config(config, **changes)


TCD = from_config("TCDScheduler")
DDIM = from_config("DDIMScheduler", timestep_spacing="trailing")
EULER = from_config("EulerDiscreteScheduler", timestep_spacing="trailing")
ZERO_SNR = TRAILING | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
MODELS = {
    "SDXL-Turbo": Published(TURBO),
    "SDXL-Turbo, v": Published(TURBO | {"prediction_type": "v_prediction"}),
    "SDXL-Lightning": Published(SDXL_BASE, {"scheduler": "euler"}, EULER, steps=(1, 2, 4, 8)),
    "a file that says no spacing": Published(
        {name: SDXL_BASE[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
        | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
        {"scheduler": "euler"},
        EULER,
    ),
    "SDXL-Lightning, one step": Published(
        SDXL_BASE,
        {"scheduler": "euler", "prediction_type": "sample"},
        from_config("EulerDiscreteScheduler", timestep_spacing="trailing", prediction_type="sample"),
    ),
    "Euler, no signal at the end": Published(ZERO_SNR, tolerance=1e-3),  # stock subtracts numbers of 10^4 in float32
    "Euler at chosen timesteps": Published(
        TRAILING, {"timesteps": (899, 300)}, None, {"timesteps": (899, 300)}, (1, 2)
    ),
    "Hyper-SD, eta 1": Published(SDXL_BASE, {"scheduler": "tcd", "eta": 1.0}, TCD, {"eta": 1.0}, (1, 2, 4, 8)),
    "Hyper-SD, eta 0.3": Published(SDXL_BASE, {"scheduler": "tcd", "eta": 0.3}, TCD, {"eta": 0.3}, (1, 2, 4, 8)),
    "TCD without eta": Published(SDXL_BASE, {"scheduler": "tcd"}, TCD),
    "TCD at chosen timesteps": Published(
        SDXL_BASE, {"scheduler": "tcd", "eta": 0.8, "timesteps": DMD2}, TCD, {"eta": 0.8, "timesteps": DMD2}
    ),
    "Hyper-SD, DDIM": Published(SDXL_BASE, {"scheduler": "ddim"}, DDIM, steps=(1, 2, 4, 8)),
    "Hyper-SD, one step": Published(
        SDXL_BASE, {"scheduler": "lcm", "timesteps": (800,)}, from_config("LCMScheduler"), {"timesteps": (800,)}, (1,)
    ),
    "DMD2": Published(
        SDXL_BASE, {"scheduler": "lcm", "timesteps": DMD2}, from_config("LCMScheduler"), {"timesteps": DMD2}
    ),
    "DMD2, one step": Published(
        SDXL_BASE, {"scheduler": "lcm", "timesteps": (399,)}, from_config("LCMScheduler"), {"timesteps": (399,)}, (1,)
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another scheduler": (
        TRAILING | {"_class_name": "DPMSolverMultistepScheduler"}, {},
        "scheduler: got DPMSolverMultistepScheduler, expected LCMScheduler or EulerDiscreteScheduler or",
    ),
    "not trailing": (
        SDXL_BASE, {},
        "scheduler: got EulerDiscreteScheduler with timestep_spacing 'leading', expected 'trailing'; for a consistency "
        'model set model.scheduler = "lcm", for another',
    ),
    "Karras": (TRAILING | {"use_karras_sigmas": True}, {}, "scheduler: use_karras_sigmas: got True"),
    "a last sigma": (TRAILING | {"final_sigmas_type": "sigma_min"}, {}, "scheduler: final_sigmas_type: got"),
    "no signal": (ZERO_SNR | {"prediction_type": "epsilon"}, {}, "rescale_betas_zero_snr: got a last timestep that is"),
    "clean prediction": (TURBO | {"prediction_type": "sample"}, {}, "prediction_type: got 'sample'. Expected"),
    "clipping": (SDXL_BASE | {"clip_sample": True}, {"scheduler": "ddim"}, "scheduler: clip_sample: got True"),
    "eta": (TRAILING, {"eta": 0.5}, "eta: got 0.5, but a EulerDiscreteScheduler has none; leave it out"),
    "timesteps": (
        TURBO, {"timesteps": (999, 299)},
        "timesteps: got [999, 299], but a EulerAncestralDiscreteScheduler takes none; leave them out for its own",
    ),
    "guidance": (TURBO, {"guidance": 7.0}, "guidance: got 7.0, but this UNet has no guidance embedding; set it to 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL-class model without a guidance embedding."""
    return write_tiny_model(tmp_path_factory.mktemp("sdxl") / "model", guidance_embedding=False)


@pytest.mark.parametrize("name", MODELS)
def test_latents_are_those_of_stock_diffusers(plain: Path, tmp_path: Path, name: str) -> None:
    """Guards against any difference in timesteps, noise levels, scalings, the last step or the order of noises."""
    made = MODELS[name]
    folder = with_scheduler(plain, tmp_path / "model", made.scheduler)
    model, pipeline = load(folder, **made.settings), stock_pipeline(folder, made.stock)
    for num_steps in made.steps:
        expected = stock_latents(pipeline, num_steps, **made.call)
        assert expected.abs().max() > 0.1
        assert difference(our_latents(model, num_steps), expected) <= made.tolerance, num_steps


@pytest.mark.parametrize("name", ["SDXL-Turbo", "SDXL-Lightning", "Hyper-SD, eta 0.3", "Hyper-SD, DDIM", "DMD2"])
def test_an_adapter_draws_the_same_in_stock_diffusers(plain: Path, tmp_path: Path, name: str) -> None:
    """Guards against an adapter that is trained by another sampler than it is drawn by."""
    made, lora = MODELS[name], LoraSettings(rank=4, alpha=10.0)
    folder = with_scheduler(plain, tmp_path / "model", made.scheduler)
    model, pipeline = load(folder, **made.settings), stock_pipeline(folder, made.stock)
    before = our_latents(model, 2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.add_lora(lora, seed=0):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_lora(tmp_path / "adapter", lora)
    pipeline.load_lora_weights(tmp_path / "adapter")
    for num_steps in made.steps:
        expected = stock_latents(pipeline, num_steps, **made.call)
        assert difference(our_latents(model, num_steps), expected) <= 1e-4, num_steps
    assert (our_latents(model, 2) - before).abs().max() > 0.01, "the adapter changes nothing"


@pytest.mark.parametrize("name", ["SDXL-Turbo", "SDXL-Lightning", "Hyper-SD, eta 0.3", "DMD2"])
def test_two_steps_begin_with_the_one_step_sample(plain: Path, tmp_path: Path, name: str) -> None:
    """Guards against z1 that no one-step sampling gives: both steps' samples are scored and trained from one pass.

    The gradient of z2 stays within its own step.
    """
    made = MODELS[name]
    model = load(with_scheduler(plain, tmp_path / "model", made.scheduler), **made.settings)
    first, second = (torch.randn(1, *model.latent_shape) for _ in range(2))
    conditioning, (parameter, *_) = model.embed([PROMPT]), model.add_lora(LoraSettings(rank=2), seed=0)
    z1, z2 = sample_latents(model, [first, second], conditioning)
    assert torch.equal(z1, sample_latents(model, [first], conditioning)[0])
    with torch.no_grad():
        once, again = sample_latents(model, [first, second], conditioning)
    assert torch.equal(once, z1)
    assert torch.equal(again, z2), "a sampler that remembers the last call"
    assert z2.requires_grad
    (by_z2,) = torch.autograd.grad(z2.sum(), parameter, allow_unused=True)
    assert by_z2 is not None
    steps = model.steps(2)
    x_t = model.next_input(model.first_input(first, steps[0]), z1.detach(), second, *steps)
    alone = model.predict_clean(x_t, steps[1], conditioning)
    torch.testing.assert_close(torch.autograd.grad(alone.sum(), parameter)[0], by_z2)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_sampled_so_is_refused(plain: Path, tmp_path: Path, name: str) -> None:
    """Guards against a setting that is left out without a word, or a traceback from inside a scheduler."""
    scheduler, settings, message = REFUSED[name]
    folder = with_scheduler(plain, tmp_path / "model", scheduler)
    with pytest.raises(ModelError) as refusal:
        load(folder, **settings)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_steps_that_a_sampler_does_not_have(plain: Path, tmp_path: Path) -> None:
    """Guards against a traceback of numpy, or steps that stock draws otherwise."""
    folder = with_scheduler(plain, tmp_path / "model", SDXL_BASE | {"original_inference_steps": 4})
    for scheduler in ("lcm", "tcd"):
        with pytest.raises(ModelError, match="steps: got 8, expected at most 4, the scheduler's original steps"):
            load(folder, scheduler=scheduler).steps(8)
    with pytest.raises(ModelError, match="steps: got 3, expected a number that divides 1000"):
        load(folder, scheduler="ddim").steps(3)
    with pytest.raises(ModelError, match=r"timesteps: got \[999, 499\] for 4 steps, expected at most 2 steps"):
        load(folder, scheduler="euler", timesteps=(999, 499)).steps(4)


def test_what_needs_another_sampler_is_named(plain: Path, tmp_path: Path) -> None:
    """Guards against copies of one sample that are paid for as draws of it, and against a consistency loss for a model
    that is none."""
    model = load(with_scheduler(plain, tmp_path / "model", TRAILING))
    with pytest.raises(ModelError, match="second_step_draws: got 2, but this model's sampler adds no noise between"):
        sample_groups(model, [Prompt(PROMPT)], SamplingSettings(seeds_per_prompt=2, second_step_draws=2), 0)
    with pytest.raises(ModelError, match=r'sampled by EulerDiscreteScheduler was .* method\.regulariser = "base"'):
        model.distillation_loss(str(plain))


def test_what_the_surrogate_looks_at_is_the_diffusion(plain: Path, tmp_path: Path) -> None:
    """Guards against a surrogate that is shown Euler's scale of noise: at 500 of SDXL's schedule abar is 0.2763."""
    model = load(with_scheduler(plain, tmp_path / "model", TURBO))
    z, noise = torch.ones(2, *model.latent_shape), torch.zeros(2, *model.latent_shape)
    x_t = model.diffuse(z, noise, torch.tensor([0, 500]))
    assert x_t[0].mean().item() == pytest.approx((1 - 0.00085) ** 0.5, abs=1e-5)
    assert x_t[1].mean().item() == pytest.approx(0.2763**0.5, abs=1e-3)
