"""Stages stop and go on, and leave what can be carried."""

from __future__ import annotations

import io
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from lasro.config import Settings
from lasro.errors import ConfigError, ConflictError, NonFiniteError
from tiny_recipe.config import Recipe, StageSettings, load_recipe
from tiny_recipe.lcm import new_student
from tiny_recipe.networks import new_text_encoders, new_tokenizer, new_unet, new_vae, plain_names
from tiny_recipe.reporting import Stop
from tiny_recipe.session import carried
from tiny_recipe.stage import Stage, StageRun
from tiny_recipe.work_dir import STATE_FILE_BYTES, STATE_FILES, StageProgress, WorkDir

CPU = torch.device("cpu")
FOLDER = Path(__file__).parents[2] / "recipes" / "tiny-sdxl-lcm"
SETTINGS = StageSettings(minutes=100, steps=12, batch_size=4, learning_rate=0.05, warmup_steps=3, average=0.9)


class After(Stop):
    """Stops after so many questions."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def wanted(self) -> bool:
        self.left -= 1
        return self.left < 0


def small_stage(settings: StageSettings = SETTINGS, scale: float = 1.0) -> Stage:
    """A line fitted to noise that the step's generator draws."""
    torch.manual_seed(0)
    line, target = nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False)

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(settings.batch_size, 3, generator=generator)
        return {"loss": scale * (line(x) - x.sum(1, keepdim=True)).square().mean()}

    trained, followed = nn.ModuleDict({"line": line}), nn.ModuleDict({"line": target})
    return Stage("vae", settings, trained, losses, followed, 0.5)


def run(work_dir: WorkDir, stop: Stop, stage: Stage | None = None) -> tuple[StageRun, StageProgress]:
    stage_run = StageRun(stage or small_stage(), work_dir, CPU, Console(file=io.StringIO()))
    return stage_run, stage_run.run(stop)


@pytest.mark.parametrize("stops", [(5,), (1, 1, 4)])
def test_a_stage_that_was_stopped_ends_where_it_would_have(
    miniature: Recipe, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """Bug: optimiser, average, target, schedule or noise that a resume begins anew."""
    whole, through = WorkDir(tmp_path / "a", miniature), WorkDir(tmp_path / "b", miniature)
    uninterrupted, _ = run(whole, Stop())
    for steps in stops:
        _, progress = run(through, After(steps))
        assert not progress.finished
    resumed, progress = run(through, Stop())
    assert (progress.finished, progress.steps, progress.sessions) == (True, 12, len(stops) + 1)
    for name in ("average", "trained", "target"):
        ours, theirs = (getattr(each, name, None) or getattr(each.stage, name) for each in (resumed, uninterrupted))
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[key]), f"{name}.{key}"
    assert not through.checkpoint("vae").exists()


def test_another_machine_goes_on_from_the_averaged_weights(miniature: Recipe, tmp_path: Path) -> None:
    """Bug: state that was carried is ignored, or the full learning rate meets a fresh optimiser."""
    work_dir = WorkDir(tmp_path, miniature)
    first, _ = run(work_dir, After(6))
    work_dir.checkpoint("vae").unlink()
    second = StageRun(small_stage(), work_dir, CPU, Console(file=io.StringIO()))
    for name, tensor in first.average.state_dict().items():
        assert torch.allclose(second.stage.trained.state_dict()[name], tensor, atol=1e-3)
        assert second.stage.target is not None
        assert torch.equal(second.stage.target.state_dict()[name], second.average.state_dict()[name])
    second.run(After(1))
    assert second.progress.steps == 7
    assert second.optimiser.param_groups[0]["lr"] < SETTINGS.learning_rate / SETTINGS.warmup_steps


def test_time_ends_a_stage_and_a_session(miniature: Recipe, tmp_path: Path) -> None:
    """Bug: a stage that overruns its budget, or a session that a limit does not end."""
    brief = SETTINGS.model_copy(update={"minutes": 0.3 / 60, "steps": None})
    started = time.monotonic()
    _, progress = run(WorkDir(tmp_path / "a", miniature), Stop(), small_stage(brief))
    assert progress.finished
    assert time.monotonic() - started < 20
    _, progress = run(WorkDir(tmp_path / "b", miniature), Stop(after_minutes=1e-6))
    assert (progress.steps, progress.finished) == (0, False)


def test_what_is_not_finite_is_not_saved(miniature: Recipe, tmp_path: Path) -> None:
    """Bug: weights ruined by a diverging loss replace good ones."""
    work_dir = WorkDir(tmp_path, miniature)
    with pytest.raises(NonFiniteError, match="lower its learning_rate"):
        run(work_dir, Stop(), small_stage(scale=float("inf")))
    assert not work_dir.state.exists()


def test_the_budget_scales_all_stages(full: Recipe) -> None:
    """Bug: one stage keeps its time when the budget is halved."""
    half = full.within(full.minutes / 2)
    assert half.minutes == pytest.approx(full.minutes / 2)
    assert half.teacher.minutes / full.teacher.minutes == pytest.approx(half.lcm.minutes / full.lcm.minutes)


def test_state_of_another_recipe_is_refused(miniature: Recipe, tmp_path: Path) -> None:
    """Bug: weights of other networks are trained on in silence; or a changed budget makes another recipe."""
    run(WorkDir(tmp_path, miniature), After(2))
    assert WorkDir(tmp_path, miniature.within(3)).progress("vae").steps == 2
    with pytest.raises(ConflictError, match="seed"):
        WorkDir(tmp_path, miniature.model_copy(update={"seed": 7})).progress("vae")
    with pytest.raises(ConflictError, match="vae stage is not finished"):
        WorkDir(tmp_path, miniature).finished("vae")


def test_state_of_the_first_version_is_read(miniature: Recipe, tmp_path: Path) -> None:
    """Bug: `visits` became `sessions`, and a stage that 0.1.0 began is refused."""
    work_dir = WorkDir(tmp_path, miniature)
    run(work_dir, After(2))
    written = work_dir.state / "progress.json"
    written.write_text(written.read_text().replace('"sessions"', '"visits"'))
    assert (work_dir.progress("vae").steps, work_dir.progress("vae").sessions) == (2, 1)


@pytest.mark.proof
def test_a_session_fits(full: Recipe, tmp_path: Path) -> None:
    """Bug: networks outgrow the size of a state file, their number, or what one session may carry in all."""
    work_dir = WorkDir(tmp_path, full)
    tokenizer = new_tokenizer(full, map("".join, product("abcdefghijklm", repeat=5)))
    assert len(tokenizer) == full.text.vocabulary
    encoders = new_text_encoders(full, tokenizer)
    done = StageProgress(sessions=1, finished=True)
    work_dir.save("vae", done, plain_names(nn.ModuleDict({"vae": new_vae(full)})))
    work_dir.save("teacher", done, plain_names(nn.ModuleDict({"unet": new_unet(full), **encoders})))
    work_dir.save("lcm", done, plain_names(nn.ModuleDict({"unet": new_student(full)})))
    work_dir.tokenizer.write_text(tokenizer.backend_tokenizer.to_str())
    files = list(work_dir.state.iterdir())
    assert len(files) <= STATE_FILES
    assert all(path.stat().st_size <= STATE_FILE_BYTES for path in files)
    with pytest.raises(ConfigError, match=r"no emoji there; make the file by"):
        carried(work_dir, "vae")
    work_dir.emoji.write_bytes(b"")
    stage_bytes = {stage: sum(size for _, size in carried(work_dir, stage)) for stage in ("vae", "teacher", "lcm")}
    assert stage_bytes["vae"] < stage_bytes["teacher"] < stage_bytes["lcm"] < (60 << 20) - 6_600_000
    work_dir.emoji.write_bytes(bytes(12_000_000))
    with pytest.raises(ConfigError, match="bytes to carry, expected at most"):
        carried(work_dir, "lcm")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    """Bug: a renamed setting leaves a shipped recipe behind."""
    assert load_recipe(path).latent_px >= 8


def test_a_wrong_recipe_is_named(tmp_path: Path) -> None:
    """Bug: a typo leaves the default in force."""
    text = (FOLDER / "miniature.toml").read_text()
    (tmp_path / "r.toml").write_text(text.replace("average", "averaged", 1))
    with pytest.raises(ConfigError, match=r"vae\.averaged: no such setting; did you mean vae\.average\?"):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(tmp_path / "absent.toml")


def test_every_setting_is_documented() -> None:
    """Bug: a setting whose meaning and unit stand nowhere."""
    pending: list[type[Settings]] = [Recipe, StageProgress]
    while pending:
        model = pending.pop()
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                pending.append(field.annotation)
            else:
                assert field.description, f"{model.__name__}.{name} has no doc line"
