"""What `lasro doctor MODEL` computes, beside what is there when the same is done for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import PLAIN, UNET, diffusers_form, random_factors, write_adapter
from changed_model import change_json, copy_model
from few_step_models import SDXL_BASE, with_scheduler
from tiny_model import write_tiny_model

from benchmarks.easy_reward import PROMPTS, linear_reward, rewarded_groups
from lasro.config import RunSettings
from lasro.errors import ConfigError, DeviceMemoryError, ModelError
from lasro.models import text_encoders
from lasro.models.backbone import trunk_of
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator
from lasro_client.doctor import report as doctor_report
from lasro_client.doctor.live_bytes import LiveBytes
from lasro_client.doctor.needs import Computed, Need
from lasro_client.doctor.report import examine
from lasro_client.doctor.shapes import shapes_of
from lasro_client.doctor.steps import ClientSteps, TrainerSteps
from lasro_client.run.cost import Speed, train_cost

SMALL = Computed("Family", (8, 8), [], [Need("client", "update", 1 << 20, 1, 0)], 0, 1, 1)
"""A byte more than there is."""


def settings(path: Path | str, **tables: Any) -> RunSettings:
    model = {"path": str(path), "device": "cpu"} | tables.pop("model", {})
    return RunSettings.model_validate(
        {"name": "any", "prompts": {"train": "unread", "held_out": "unread"}, "rewards": [{"name": "r"}]}
        | {"model": model, "surrogate": {"device": "cpu"}, "lora": {"rank": 2, "targets": ["to_q"]}}
        | tables
    )


def test_bytes_by_hand() -> None:
    """Guards against storages that are counted twice, as views are, and against some that are never given back.

    4,000 bytes, 4,000 more, of which a view takes none, then 8,000 while the first two are alive: 16,000 at one time.
    A view of what was there before takes nothing either.
    """
    earlier = torch.zeros(5000)
    with LiveBytes() as live:
        assert len(earlier.view(50, 100).t()) == 100
        assert live.peak_since() == 0
        first = torch.zeros(1000)
        second = first + 1
        third = torch.cat([first, second.view(10, 100).flatten()])
        del first, second
        assert live.now == 8_000
        assert live.peak_since() == 16_000
        assert live.peak_since() == 8_000
        del third
    assert live.now == 0


@pytest.mark.parametrize(
    "tables",
    [
        {"train": {"batch_size": 4, "prompts_per_round": 2, "seeds_per_prompt": 2}},
        pytest.param(
            {
                "train": {"batch_size": 4, "micro_batch_size": 2, "two_step_every": 2, "mode": "gradient"},
                "model": {"gradient_checkpointing": True},
                "surrogate": {"trunk": "adapter", "adapter_rank": 2, "device": "cpu"},
            },
            marks=pytest.mark.proof,
        ),
    ],
    ids=["weights", "gradient"],
)
@pytest.mark.proof  # seconds each: shapes go through whole networks
def test_shapes_take_the_bytes_of_tensors(tiny_model_path: Path, tables: dict[str, Any]) -> None:
    """Guards against activations that are kept for real and not on shapes, or the other way round."""
    config = settings(tiny_model_path, **tables)
    shapes = shapes_of(config.model)
    with shapes.active(), LiveBytes() as computed:
        of_shapes = peaks(computed, ClientSteps(config, shapes.model), TrainerSteps(config, shapes.model))
    model = load_model(config.model)
    model.embed(["a photo of a cat"])
    with LiveBytes() as real:
        of_tensors = peaks(real, ClientSteps(config, model), TrainerSteps(config, model))
    assert of_shapes == pytest.approx(of_tensors, rel=0.05)


@pytest.mark.proof  # seconds each: whole networks
@pytest.mark.parametrize("kind", ["rlcm", "diffusion-dpo"])
def test_what_learns_from_rewards_takes_the_bytes_of_its_update(tiny_model_path: Path, kind: str) -> None:
    """Guards against steps that a policy method holds at once and nobody counted: its real update, on a real round."""
    train = {"steps": (2, 3), "batch_size": 4, "prompts_per_round": 4, "seeds_per_prompt": 3, "second_step_draws": 2}
    config = settings(tiny_model_path, method={"type": kind}, train=train)
    steps = ClientSteps(config, load_model(config.model))
    trainer = steps.trainer
    with LiveBytes() as live:
        computed = peak(live, steps.update)
    trainer.restart(0)
    assert trainer.observe(rewarded_groups(trainer, linear_reward(trainer.model)))
    with LiveBytes() as live:
        assert peak(live, lambda: trainer.step(PROMPTS, None)) == pytest.approx(computed, rel=0.15)


@pytest.mark.proof  # seconds each: shapes go through whole networks
def test_a_backbone_is_counted_where_it_is_held(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against half of a backbone that nothing holds, and one that the client holds and nobody counted."""
    plain = write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    surrogate = {"backbone": str(with_scheduler(plain, tmp_path / "sdxl", SDXL_BASE)), "device": "cpu"}
    small = {"batch_size": 2, "prompts_per_round": 1, "seeds_per_prompt": 2}
    config = settings(tiny_model_path, surrogate=surrogate, train=small, model={"height": 16, "width": 16})
    model = load_model(config.model)
    backbone = trunk_of(config.surrogate_run, model)
    for each in (model, backbone):
        each.embed(["a photo of a cat"])
    with LiveBytes() as live:
        client = ClientSteps(config, model, backbone)
        of_tensors = [peak(live, client.generate), peak(live, client.update)]
    with LiveBytes() as live:
        trainer = TrainerSteps(config, backbone)
        of_tensors += [peak(live, trainer.serve), peak(live, trainer.step)]
    found = examine(config, run=False)
    assert [row["computing"] for row in found["memory"]] == pytest.approx(of_tensors, rel=0.05)
    assert isinstance(backbone, UNetGenerator)
    parts = {part["name"]: part["bytes"] for part in found["parts"]}
    assert parts["backbone unet"] == sum(each.nbytes for each in backbone.unet.parameters() if not each.is_meta)
    assert parts["backbone unet"] < 0.7 * parts["unet"]
    update, serving = (found["memory"][place]["weights"] for place in (1, 2))
    assert update - serving >= parts["unet"]


def test_text_encoders_of_shapes_are_not_let_go(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: where the doctor took a minute they went as idle and were read again inside of what is counted: 3.3 GB more
    in every step of an SDXL-class model, by nothing but a busy machine."""
    monkeypatch.setattr(text_encoders, "IDLE_S", -1.0)
    shapes = shapes_of(settings(tiny_model_path).model)
    encoders = sum(part.bytes for part in shapes.parts if part.name.startswith("text_encoder"))
    with shapes.active(), LiveBytes() as live:
        for prompt in ("a red circle", "a blue square"):
            shapes.model.embed([prompt])
        assert 0 < live.now < encoders / 10


@pytest.mark.proof  # seconds each: shapes go through whole networks
@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "tcd", "ddim"])
def test_shapes_are_sampled_by_every_sampler(tmp_path: Path, tiny_model_path: Path, scheduler: str) -> None:
    """Guards against a sampler that asks shapes for their values, and a base adapter that is fused into shapes."""
    folder = write_tiny_model(tmp_path / "model", guidance_embedding=False)
    base_adapter = write_adapter(tmp_path / "adapter" / PLAIN, diffusers_form(random_factors(folder / UNET, ("to_q",))))
    table = {"guidance": 1.0, "scheduler": scheduler, "base_adapter": str(base_adapter)}
    config = settings(folder, model=table, train={"batch_size": 2, "prompts_per_round": 1, "seeds_per_prompt": 2})
    shapes = shapes_of(config.model)
    with shapes.active(), LiveBytes() as computed:
        steps = ClientSteps(config, shapes.model)
        steps.generate()
        steps.update()
        assert computed.peak_since() > 0
    with pytest.raises(ModelError, match=r"^model\.base_adapter: .*: is a whole model, no adapter"):
        shapes_of(config.model.model_copy(update={"base_adapter": str(tiny_model_path)}))


def peaks(live: LiveBytes, client: ClientSteps, trainer: TrainerSteps) -> list[int]:
    return [peak(live, step) for step in (client.generate, client.update, trainer.step, trainer.serve)]


def peak(live: LiveBytes, step: Callable[[], object]) -> int:
    for _ in range(2):
        live.peak_since()
        step()
    return live.peak_since()


@pytest.fixture(scope="module")
def examined(tiny_model_path: Path) -> dict[str, Any]:
    """The tiny model by default settings but for its LoRA."""
    return examine(settings(tiny_model_path), run=False)


def test_parts_are_those_of_the_model(tiny_model_path: Path) -> None:
    """Guards against a table of another model."""
    config = settings(tiny_model_path)
    model = load_model(config.model)
    assert isinstance(model, UNetGenerator)
    model.prompt_encoder.encoders.load()
    counted = {part.name: part.parameters for part in shapes_of(config.model).parts}
    for name, count in counted.items():
        assert count == sum(parameter.numel() for parameter in getattr(model.pipeline, name).parameters())
    assert counted.keys() == {"unet", "vae", "text_encoder", "text_encoder_2"}


@pytest.mark.proof  # shapes go through whole networks
def test_steps_are_those_of_the_run(tiny_model_path: Path, examined: dict[str, Any]) -> None:
    """Guards against a table without a step that a run does."""
    config, found = settings(tiny_model_path), examined
    assert found["lora_parameters"] == sum(each.numel() for each in load_model(config.model).add_lora(config.lora, 0))
    assert [row["step"] for row in found["memory"]] == ["generation", "update", "serving", "surrogate step"]


def test_figures_add_up(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a total that leaves something out, and calls of another run."""
    needs = [Need("client", "update", 1, 20, 300), Need("trainer", "serving", 1, 20, 4000)]
    monkeypatch.setattr(doctor_report, "compute_needs", lambda *_: SMALL._replace(needs=needs))
    config = settings(tiny_model_path)
    found = examine(config, run=False)
    assert [row["total"] for row in found["memory"]] == [321, 4021]
    assert found["reward_calls"]["most"] == train_cost(config.train, Speed(1, 1, 1)).calls
    assert found["seconds_a_round"] is None


@pytest.mark.proof
def test_needs_go_by_the_settings(tiny_model_path: Path, examined: dict[str, Any]) -> None:
    """Guards against an estimate of other settings than the run's."""
    tables = {"train": {"batch_size": 48, "mode": "gradient"}, "model": {"dtype": "bfloat16", "autocast": "bfloat16"}}
    surrogate = {"device": "cpu", "autocast": "bfloat16", "serve_autocast": "bfloat16"}
    found = examine(settings(tiny_model_path, surrogate=surrogate, **tables), run=False)
    before, after = ({row["step"]: row for row in each["memory"]} for each in (examined, found))
    assert after["update"]["computing"] > before["update"]["computing"]  # thrice the prompts, in half the bytes
    assert after["serving"]["computing"] > before["serving"]["computing"]
    assert after["update"]["weights"] == pytest.approx(before["update"]["weights"] / 2, rel=0.01)


@pytest.mark.proof  # shapes go through whole networks, twice
def test_a_network_in_pieces(tiny_model_path: Path) -> None:
    """Guards against a table that has each process hold the network whole, the trainer hold a piece, or a CPU a copy.

    Whole at one time are two of the largest blocks and what is in none.
    """
    train = {"mode": "gradient", "batch_size": 4, "prompts_per_round": 1, "seeds_per_prompt": 1}
    whole, shared = (
        examine(settings(tiny_model_path, model={"shard": shard}, train=train), run=False, processes=4)
        for shard in (False, True)
    )
    unet: Any = load_model(settings(tiny_model_path).model).unet  # type: ignore[attr-defined]
    total = sum(weight.nbytes for weight in unet.parameters())
    blocks = [each for each in unet.modules() if type(each).__name__ in unet._no_split_modules]
    inner = [each for each in blocks if type(each).__name__ in ("BasicTransformerBlock", "ResnetBlock2D")]
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in inner]
    in_blocks = {id(weight): weight.nbytes for block in blocks for weight in block.parameters()}
    expected = total / 4 + 2 * max(sizes) + total - sum(in_blocks.values())
    rows = [{(row["process"], row["step"]): row for row in found["memory"]} for found in (whole, shared)]
    for step in (("client", "generation"), ("client", "update")):
        copied = next(part["copied_bytes"] for part in whole["parts"] if part["name"] == "unet")
        saved = rows[0][step]["weights"] - rows[1][step]["weights"]
        assert saved == pytest.approx(total + copied - expected, rel=0.01)
        assert rows[0][step]["computing"] == rows[1][step]["computing"]
    assert rows[0]["trainer", "serving"]["weights"] == rows[1]["trainer", "serving"]["weights"]
    with pytest.raises(ConfigError, match=r"model\.shard: got true with one process"):
        examine(settings(tiny_model_path, model={"shard": True}, train=train), run=False)


@pytest.mark.proof
def test_a_trainer_in_the_clients_process_counts_there(tiny_model_path: Path) -> None:
    """Bug: what the trainer holds is left out of the client's steps, or the model is counted twice. And a batch of one:
    shapes were asked for the index of a prompt, and named the second."""
    train = {"batch_size": 1, "prompts_per_round": 1, "seeds_per_prompt": 2}
    apart = examine(settings(tiny_model_path, train=train), run=False)["memory"]
    shared = {"services": {"in_process_trainer": True}}
    together = examine(settings(tiny_model_path, train=train, **shared), run=False)["memory"]
    assert {row["process"] for row in together} == {"client"}
    alone, both = ({row["step"]: row["computing"] for row in rows} for rows in (apart, together))
    assert both.keys() == alone.keys()
    assert all(both[step] > alone[step] for step in alone)
    assert both["update"] < alone["update"] + alone["surrogate step"]
    assert {row["weights"] for row in together} == {row["weights"] for row in apart}


def test_too_little_memory_is_told_before_anything_is_loaded(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a machine that swaps or kills in place of one line with what to lower."""
    monkeypatch.setattr(doctor_report, "compute_needs", lambda *_: SMALL)
    monkeypatch.setattr(doctor_report, "free_memory", lambda _: 1 << 20)
    monkeypatch.setattr(doctor_report, "try_steps", lambda *_: pytest.fail("a step was begun"))
    with pytest.raises(DeviceMemoryError, match=r": needs .* GiB in the \w+, and there are 0\.0 GiB; lower .*, or set"):
        examine(settings(tiny_model_path), run=True)
    assert examine(settings(tiny_model_path), run=False)["free_memory"] == 1 << 20


def test_what_is_not_supported_is_one_line(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against a report about a model that no run could load."""
    folder = copy_model(tiny_model_path, tmp_path / "model")
    change_json(folder / "model_index.json", _class_name="KandinskyPipeline")
    with pytest.raises(ModelError, match=r"got a KandinskyPipeline, expected one of "):
        examine(settings(folder), run=False)
    folder = copy_model(tiny_model_path, tmp_path / "other")
    (folder / "vae").rename(folder / "gone")
    with pytest.raises(ModelError, match=r"lacks vae, which a StableDiffusionXLPipeline has"):
        examine(settings(folder), run=False)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"^device: got cuda, but torch .* sees no GPU"):
            examine(settings(tiny_model_path, model={"device": "cuda"}), run=True)


@pytest.mark.proof
def test_what_is_seen_is_near_what_was_computed() -> None:
    """The figure that people plan by, on the bundled model, each step in a process of its own.

    On a CPU a process keeps freed memory of tensors as small as these, which nothing computes.
    """
    found = examine(settings("bundled"), run=True)
    for row in found["memory"]:
        assert 0.85 < row["seen"] / row["total"] < 1.4, row["step"]
    assert found["seconds_a_round"] > 0
