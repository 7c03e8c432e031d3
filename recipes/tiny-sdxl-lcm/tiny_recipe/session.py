"""What a short session on another machine needs: the code, the emoji and the state, within a size."""

from __future__ import annotations

from pathlib import Path

from lasro.errors import ConfigError
from tiny_recipe.emoji import check_there
from tiny_recipe.work_dir import STATE_FILE_BYTES, STATE_FILES, WorkDir

LARGEST_SESSION_BYTES = 60 << 20
CODE = ("recipes/tiny-sdxl-lcm", "lasro", "client/lasro_client")
STAGES = {"vae": ("vae",), "teacher": ("vae", "teacher"), "lcm": ("vae", "teacher", "lcm")}
ROOT = Path(__file__).resolve().parents[3]
Sizes = list[tuple[Path, int]]


def carried(work_dir: WorkDir, stage: str) -> Sizes:
    """Each file to carry and its bytes; raises ConfigError where together they are more than a session may carry.

    Of the project, only the code that the stages import: the bundled model and the tests can stay behind.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage: got {stage}, expected one of {', '.join(STAGES)}")
    code = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*")) if _is_code(path)]
    state = [path for name in STAGES[stage] for path in sorted(work_dir.state.glob(f"{name}-*.safetensors"))]
    state += [path for path in (work_dir.state / "progress.json", work_dir.tokenizer) if path.exists()]
    emoji = [work_dir.emoji] if work_dir.recipe.data.emoji_share else []
    for path in emoji:
        check_there(path)
    sizes = [(path, path.stat().st_size) for path in (*code, *emoji, *state)]
    too_large = [path.name for path in state if path.stat().st_size > STATE_FILE_BYTES]
    if too_large or len(state) > STATE_FILES:
        raise ConfigError(
            f"{work_dir.state}: got {len(state)} files, too large {too_large}; expected 8 below 15 MB each"
        )
    total_bytes = sum(size for _, size in sizes)
    if total_bytes > LARGEST_SESSION_BYTES:
        raise ConfigError(f"{stage}: {total_bytes} bytes to carry, expected at most {LARGEST_SESSION_BYTES}")
    return sizes


def carried_table(sizes: Sizes) -> str:
    """Files, the code as one line, and the sum."""
    data = [(str(path), size) for path, size in sizes if not path.is_relative_to(ROOT) or "runs" in path.parts]
    code_bytes = sum(size for _, size in sizes) - sum(size for _, size in data)
    lines = [("code", code_bytes), *data, ("together", sum(size for _, size in sizes))]
    return "\n".join(f"{size / 1e6:8.2f} MB  {name}" for name, size in lines)


def _is_code(path: Path) -> bool:
    return path.is_file() and not {"assets", "__pycache__"} & set(path.parts)
