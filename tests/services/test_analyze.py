"""`lasro analyze`: models whose answers are known in closed form, and every command on the smallest model, with a real
reward behind the real reward API."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import PLAIN, UNET, diffusers_form, random_factors, write_adapter
from tiny_transformers import write_tiny_sana, write_tiny_z_image
from torch import Tensor
from torch_rewards import brightness
from toy_generator import ToyGenerator
from typer.testing import CliRunner, Result

from lasro.errors import ConfigError, ModelError
from lasro.functional.noise_schedule import lcm_timesteps
from lasro.models.image_codec import uint8_images
from lasro.reward_sdk import create_reward_app
from lasro.training.prompts import Prompt
from lasro.wire import Protocol, RewardSpec
from lasro_client.analysis.diversity import diversity
from lasro_client.analysis.lipschitz import Probe, lipschitz
from lasro_client.analysis.measured import FILE, Measured
from lasro_client.analysis.outputs import TorchRewards
from lasro_client.analysis.subject import ADAPTED, BASE, Subject
from lasro_client.analysis.which_step import which_step
from lasro_client.cli.main import app
from lasro_client.services.reward_client import RewardClient

SLOPE, CONTRAST, SHIFT = 0.5, 0.1, 0.3
PROMPTS = [Prompt(f"a {color} star") for color in ("red", "blue", "green")]


class DrawingToy(ToyGenerator):
    """Its latents are pictures of low contrast, so that nothing is clamped."""

    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        return 0.5 + CONTRAST * latents_BCHW

    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        return uint8_images(self.decode_pixels(latents_BCHW))


@pytest.fixture
def subject() -> Subject:
    model = DrawingToy(SLOPE, (3, 16, 16))
    model.theta.data += SHIFT
    return Subject(model, PROMPTS, 0, (BASE, ADAPTED), {"model": "toy", "adapter": None, "prompts": [], "seed": 0})


@pytest.fixture(scope="module")
def client(url: str, serve: Any) -> Iterator[RewardClient]:
    torch.set_num_threads(1)
    with RewardClient(url) as client:
        target = serve(create_reward_app(brightness)) + "/"
        client.register(RewardSpec(name="analysed-brightness", url=target, protocol=Protocol.NATIVE), replace=True)
        yield client


def ignored(done: int, total: int) -> None:
    pass


def row_of(result: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    [found] = [row for row in result["rows"] if all(row.get(key) == value for key, value in wanted.items())]
    return found


def abar(model: ToyGenerator, num_steps: int, step: int) -> float:
    return model.alphas_cumprod_T[lcm_timesteps(num_steps)[step]].item()


def test_slopes_of_a_straight_line(subject: Subject, tmp_path: Path) -> None:
    """Bug: x_t of another step, or a chain that leaves a step out: of a line all slopes are products of its own."""
    probe = Probe(3, 0.05, TorchRewards({"brightness": brightness}), with_gradients=True)
    result = lipschitz(subject, (1, 2), probe, tmp_path, ignored)
    chain = {1: SLOPE, 2: SLOPE**2 * math.sqrt(abar(subject.model, 2, 1))}  # pyright: ignore[reportArgumentType]
    for policy in (BASE, ADAPTED):
        rows = [(row_of(result, policy=policy, map="one_step", step=step), SLOPE) for step in (0, 1)]
        rows += [(row_of(result, policy=policy, num_steps=n), slope) for n, slope in chain.items()]
        for row, slope in rows:
            assert row["latents"]["mean"] == pytest.approx(slope, rel=1e-3)
            assert row["latents"]["max"] == pytest.approx(slope, rel=1e-3)
            assert row["images"]["mean"] == pytest.approx(CONTRAST * slope, rel=1e-3)
            # The mean of d pixels has a gradient of 1 / d in each: sqrt(d sum g^2) is the slope of one.
            along = row["rewards"]["brightness"]["along_gradient"]["mean"]
            assert along == pytest.approx(CONTRAST * slope, rel=1e-3)
            assert 0 < row["rewards"]["brightness"]["max"] < along


def test_later_noise_spreads_as_its_variance_says(subject: Subject, tmp_path: Path) -> None:
    """Bug: samples of one first noise paired with those of another: z2 = s (sqrt(abar) s x + sigma eps)."""
    result = diversity(subject, (1, 2), seeds=3, draws=3, out=tmp_path, progress=ignored)
    assert isinstance(subject.model, ToyGenerator)
    abar_1 = abar(subject.model, 2, 1)
    later = SLOPE * math.sqrt(2 * (1 - abar_1))
    both = SLOPE * math.sqrt(2 * (1 - abar_1 + abar_1 * SLOPE**2))
    for policy in (BASE, ADAPTED):
        one, two = (row_of(result, policy=policy, num_steps=n) for n in (1, 2))
        assert one["latents"]["all_noise"]["mean"] == pytest.approx(SLOPE * math.sqrt(2), rel=0.05)
        assert one["latents"]["later_noise"]["mean"] == one["images"]["share"]["mean"] == 0
        assert two["latents"]["later_noise"]["mean"] == pytest.approx(later, rel=0.05)
        assert two["latents"]["all_noise"]["mean"] == pytest.approx(both, rel=0.05)
        assert two["images"]["later_noise"]["mean"] == pytest.approx(255 * CONTRAST * later, rel=0.05)


def test_each_step_carries_its_part_of_the_gain(subject: Subject, client: RewardClient, tmp_path: Path) -> None:
    """Bug: flags of the steps exchanged. A shift of z1 arrives as sqrt(abar) times the slope, one of z2 whole."""
    result = which_step(subject, 2, client, ["analysed-brightness"], tmp_path, ignored)
    assert isinstance(subject.model, ToyGenerator)
    second = CONTRAST * SHIFT
    first = second * SLOPE * math.sqrt(abar(subject.model, 2, 1))
    for taken, expected in {
        (False, False): 0,
        (True, False): first,
        (False, True): second,
        (True, True): first + second,
    }.items():
        row = row_of(result, adapted_steps=list(taken))
        assert row["difference"]["mean"] == pytest.approx(expected, abs=1e-3)
        assert row["n"] == len(PROMPTS)


def test_draws_that_would_be_the_same_are_refused(subject: Subject, tmp_path: Path) -> None:
    """Guards against a diversity of 0 that was measured eight times; by default such a model has one draw."""
    subject.model.adds_noise = False
    with pytest.raises(ConfigError, match="draws: got 2, but this model's sampler adds no noise"):
        diversity(subject, (1, 2), seeds=2, draws=2, out=tmp_path, progress=ignored)
    assert diversity(subject, (2,), seeds=2, draws=None, out=tmp_path, progress=ignored)["draws"] == 1


def test_an_interrupted_analysis_goes_on_where_it_was(subject: Subject, tmp_path: Path) -> None:
    """Bug: Ctrl-C threw an hour away; or a line that was cut short, or other settings, were read as measured."""

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def analyse(progress: Any, seeds: int = 2) -> dict[str, Any]:
        return diversity(subject, (1, 2), seeds, draws=2, out=tmp_path / "resumed", progress=progress)

    whole = diversity(subject, (1, 2), seeds=2, draws=2, out=tmp_path / "whole", progress=ignored)
    with pytest.raises(KeyboardInterrupt):
        analyse(interrupt)
    file = tmp_path / "resumed" / FILE
    assert len(file.read_text().splitlines()) == 3
    file.write_text(file.read_text()[:-20])  # the second value, written half
    assert analyse(ignored) == whole
    assert not file.exists(), "what is finished is measured anew"
    with pytest.raises(KeyboardInterrupt):
        analyse(interrupt)
    assert analyse(ignored, seeds=3) == diversity(subject, (1, 2), 3, 2, tmp_path / "whole", ignored)


def test_values_are_measured_once(tmp_path: Path) -> None:
    """Guards against a file that is written and never read."""
    calls: list[int] = []

    def measure_and_interrupt() -> None:
        with Measured(tmp_path, {"of": 1}) as measured:
            assert measured("a", lambda: calls.append(1) or 7) == 7
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measure_and_interrupt()
    assert calls == [1]


# --- the commands, on the smallest model ---------------------------------------------------------------------


def analyze(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


def analysed(*arguments: str | Path) -> dict[str, Any]:
    done = analyze(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_diversity_of_a_model(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against a page, picture or JSON that is not written, and a result that depends on more than the seed."""
    options = (tiny_model_path, "--count", "2", "--steps", "1,3", "--seeds", "2", "--draws", "2", "--device", "cpu")
    result = analysed("diversity", *options, "--out", tmp_path / "a")
    again = analysed("diversity", *options, "--out", tmp_path / "b")
    assert result == again == json.loads((tmp_path / "a" / "diversity.json").read_text())
    assert [row["num_steps"] for row in result["rows"]] == [1, 3]
    assert 0 < row_of(result, num_steps=3)["images"]["share"]["mean"] < 2
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        "diversity.json", "diversity.html", "diversity-distance-of-images.svg", "diversity-distance-of-latents.svg"
    }  # fmt: skip
    page = (tmp_path / "a" / "diversity.html").read_text()
    assert page.count("<svg ") == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "a" / "diversity-distance-of-images.svg").read_text().startswith("<svg xmlns=")


def test_lipschitz_of_a_model_and_rewards(
    tiny_model_path: Path, client: RewardClient, url: str, tmp_path: Path
) -> None:
    """Guards against a torch function and the same one behind the API that disagree about what a slope is."""
    options = (
        "lipschitz", tiny_model_path, "--count", "1", "--steps", "1,2", "--directions", "4", "--delta", "0.2",
        "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    served = analysed(*options, "--reward", "analysed-brightness", "--reward-api", url)
    exact = analysed(*options, "--reward", "b=torch_rewards:brightness", "--gradient")
    for a, b in zip(served["rows"], exact["rows"], strict=True):
        assert a["latents"] == b["latents"]
        assert a["rewards"]["analysed-brightness"]["mean"] == pytest.approx(
            b["rewards"]["b"]["mean"], rel=0.2, abs=2e-3
        )
        assert b["rewards"]["b"]["along_gradient"]["mean"] > 0
    assert {row.get("time") for row in served["rows"]} == {999, 499, None}
    assert "along gradient" in (tmp_path / "lipschitz.html").read_text()


def test_an_adapter_of_nothing_gains_nothing_in_any_step(
    tiny_model_path: Path, client: RewardClient, url: str, tmp_path: Path
) -> None:
    """Bug: the base of one column was drawn by other noise, or by the adapter."""
    factors = random_factors(tiny_model_path / UNET, ("to_q",))
    nothing = {name: (down, 0 * up) for name, (down, up) in factors.items()}
    write_adapter(tmp_path / "run" / "adapter" / PLAIN, diffusers_form(nothing))
    (tmp_path / "run" / "config.json").write_text('{"rewards": [], "prompts": {}}')
    common = ("--adapter", tmp_path / "run", "--count", "3", "--device", "cpu", "--out", tmp_path / "out")
    options = ("steps", tiny_model_path, *common, "--reward", "analysed-brightness", "--reward-api", url)
    result = analysed(*options, "--steps", "3")
    assert [row["adapted_steps"] for row in result["rows"]] == [
        [False] * 3, [True, False, False], [False, True, False], [False, False, True], [True] * 3
    ]  # fmt: skip
    assert {row["difference"]["mean"] for row in result["rows"]} == {0.0}
    assert len({row["reward_mean"]["mean"] for row in result["rows"]}) == 1


def test_bad_input_is_one_line_before_anything_is_drawn(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against an hour of measuring that ends in a traceback."""
    model = (tiny_model_path, "--device", "cpu", "--out", tmp_path / "out")
    cases: dict[tuple[str | Path, ...], str] = {
        ("diversity", *model, "--timesteps", "999,299", "--steps", "1,4"): "4",
        ("diversity", *model, "--adapter", tmp_path / "none"): "none",
        ("lipschitz", *model, "--gradient", "--reward", "jpeg-compressibility"): "has no gradient",
    }
    for arguments, said in cases.items():
        done = analyze(*arguments)
        assert isinstance(done.exception, ConfigError | ModelError), done.output
        assert said in str(done.exception)
    assert analyze("steps", *model, "--reward", "jpeg-compressibility").exit_code == 2
    assert analyze("lipschitz", *model, "--gradient").exit_code == 2
    assert analyze("diversity", *model, "--steps", "9").exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.proof
@pytest.mark.parametrize(("write", "adds_noise"), [(write_tiny_sana, True), (write_tiny_z_image, False)])
def test_transformers_need_nothing_of_their_own(write: Any, adds_noise: bool, tmp_path: Path) -> None:
    """Guards against what only a UNet has: timesteps from 0 to 999, or noise between the steps."""
    model = (write(tmp_path / "model"), "--guidance", "1", "--device", "cpu", "--count", "1", "--steps", "1,2")
    result = analysed("diversity", *model, "--seeds", "2", "--out", tmp_path / "diversity")
    assert result["draws"] == (4 if adds_noise else 1)
    assert (row_of(result, num_steps=2)["images"]["share"]["mean"] > 0) == adds_noise
    result = analysed("lipschitz", *model, "--directions", "2", "--out", tmp_path / "lipschitz")
    assert [row["map"] for row in result["rows"]] == ["one_step"] * 2 + ["all_steps"] * 2
    assert all(row["latents"]["mean"] > 0 and row["images"]["mean"] > 0 for row in result["rows"])
