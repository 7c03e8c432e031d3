"""The model card, written from what was done and measured; `model_card.md` is its frame."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from safetensors import safe_open

from lasro.demo.shapes import BACKGROUNDS, COLORS, RELATIONS, SHAPES
from lasro.files import write_atomically
from lasro_client.watch.terminal import clock
from tiny_recipe.emoji_sources import SOURCES
from tiny_recipe.figures import figures_table
from tiny_recipe.work_dir import WorkDir

FRAME = Path(__file__).with_name("model_card.md")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
NOT_MEASURED = "Not measured yet: `make tiny-model-report` measures the model and writes them here."


def write_card(work_dir: WorkDir, folder: Path, report: dict[str, Any] | None = None) -> None:
    """README.md of the exported folder; with the figures of a report where there is one."""
    recipe = work_dir.recipe
    sources = SOURCES if recipe.data.emoji_share else ()
    fields = {
        "name": recipe.name,
        "image_px": recipe.data.image_px,
        "latent_px": recipe.latent_px,
        "sizes": "\n".join(rows(part_sizes(folder))),
        "colors": ", ".join(COLORS),
        "shapes": ", ".join(SHAPES),
        "relations": ", ".join(f"`{relation}`" for relation in RELATIONS),
        "backgrounds": ", ".join(BACKGROUNDS),
        "swapped": f"{recipe.data.swapped_colors:.0%}",
        "wrong": f"{recipe.data.wrong_relations:.0%}",
        "times": "\n".join(rows(stage_times(work_dir))),
        "sources": "\n".join(
            rows((f"{s.package} {s.version}", s.style, s.author, s.licence) for s in sources)
            or ["| none | - | - | - |"]
        ),
        "figures": NOT_MEASURED if report is None else figures_table({"this model": report}),
    }
    text = Template(FRAME.read_text(encoding="utf-8")).substitute(fields)
    write_atomically(folder / "README.md", text.encode())


def rows(cells: Iterable[Iterable[object]]) -> list[str]:
    """Rows of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in cells]


def part_sizes(folder: Path) -> list[tuple[str, str, str]]:
    """Name, parameters and bytes of each part with weights."""
    sizes = []
    for part in PARTS:
        path = next((folder / part).glob("*.safetensors"))
        with safe_open(path, "np") as file:
            parameters = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 (no mapping)
        sizes.append((part, f"{parameters / 1e6:.2f} M", f"{path.stat().st_size / 1e6:.2f} MB"))
    return sizes


def stage_times(work_dir: WorkDir) -> list[tuple[str, ...]]:
    """Of each stage: steps, time trained, time in all, sessions, device."""
    found = [(name, work_dir.progress(name)) for name in ("vae", "teacher", "lcm")]
    return [(name, str(p.steps), clock(p.trained_s), clock(p.wall_s), str(p.sessions), p.device) for name, p in found]
