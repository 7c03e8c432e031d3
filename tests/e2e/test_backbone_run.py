"""Both stages over real services with a surrogate on a many-step model beside a few-step generator of its VAE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from few_step_models import SDXL_BASE, stock_latents, stock_pipeline, with_scheduler
from tiny_model import write_tiny_model

from lasro.config import RewardSettings, RunSettings, load_config
from lasro.errors import WireError
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train
from lasro_client.services.local_stack import LocalStack

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Settings of runs that find their services started."""
    rewards = [RewardSettings(name="jpeg-incompressibility", serve="lasro_rewards.jpeg:incompressibility")]
    with LocalStack(tmp_path_factory.mktemp("stack"), rewards) as stack:
        yield [f"services.reward_api={stack.reward_api}", f"services.surrogate_trainer={stack.surrogate_trainer}"]


def test_both_stages_and_modes_on_a_backbone(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against a stage, a mode or a resumed run that puts the surrogate on the generator, or mixes up both."""
    plain = write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    backbone = with_scheduler(plain, tmp_path / "sdxl", SDXL_BASE)

    def config(name: str, *settings: str) -> RunSettings:
        common = [f"name={name}", "train.warmup_rounds=0", "train.drift_budget=none", "surrogate.trunk=adapter"]
        return load_config(config_path, [*services, *common, f"surrogate.backbone={backbone}", *settings])

    surrogate = pretrain(config("first", "pretrain.rounds=2", "pretrain.final_steps=1"), tmp_path / "stage-1")
    begun = [f"train.initial_surrogate={surrogate}", "train.learning_rate=1e-2"]
    for mode in ("weights", "gradient"):
        run = tmp_path / mode
        for rounds in (1, 2):  # the second goes on where the first was
            assert train(config(mode, f"train.mode={mode}", f"train.rounds={rounds}", *begun), run)["rounds"] == rounds
        assert (run / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    settings = config("own", *begun)
    own = settings.model_copy(update={"surrogate": settings.surrogate.model_copy(update={"backbone": None})})
    with pytest.raises(WireError, match=r"got some on surrogate\.backbone sdxl, expected them on its generator; set"):
        train(own, tmp_path / "own")


def test_a_run_in_8_bits(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against a trainer, or a generator, that stands on other weights than the client says."""
    pytest.importorskip("torchao", reason="an extra: pip install 'lasro[quantize]'")
    plain = write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    backbone = with_scheduler(plain, tmp_path / "sdxl", SDXL_BASE)
    settings = ["train.rounds=1", "train.warmup_rounds=0", "train.drift_budget=none", "surrogate.trunk=adapter"]
    settings += [f"surrogate.backbone={backbone}", "model.quantization=8bit", "name=eight-bits", *services]
    assert train(load_config(config_path, settings), tmp_path / "run")["rounds"] == 1
    adapter = tmp_path / "run" / "adapter"
    pipeline = stock_pipeline(Path(load_config(config_path).model.path))
    before = stock_latents(pipeline, 2)
    pipeline.load_lora_weights(adapter)
    assert (stock_latents(pipeline, 2) - before).abs().max() > 0, "stock's whole weights take it"
