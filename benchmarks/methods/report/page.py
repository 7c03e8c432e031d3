"""docs/results.md: what it stands on, a section for each reward, the ablations, and what is not in it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.methods.plan import missing_packages, plan_of
from benchmarks.methods.report.document import Document
from benchmarks.methods.report.sections import ablations, collapse, of_reward
from benchmarks.methods.results import is_done
from benchmarks.methods.runner import outcome

HOW_TO_READ = """\
**Gain** is the reward over that of the frozen base, of the same prompts and noises, two noises a prompt, which no run
trains on. **Drift** is the mean absolute pixel difference to the base, over that between two noises of the base
("changes of seed"). **Diversity** is the mean absolute pixel difference between the two noises of a prompt, over the
base's. **Calls** are images that were scored: those of the base too and, for methods with a surrogate, those by which
it learned to rank. ± is the standard deviation over seeds; of one seed the standard error over prompts. All runs may
drift as far (`train.drift_budget`, 0.4 changes of prompt by default), and what they export is fitted to that on the
tuning prompts.

All methods have the same prompts, LoRA, services and reward calls, and rounds until these are spent. Of shapes eight
colour-shape pairs are in no prompt that is trained on; `benchmarks/methods` has the plan, with every setting."""
NOT_HERE = """\
- A trunk of the surrogate that is a small CNN, and a surrogate that sees pixels: no setting says either.
- OCR: the bundled model draws no letters. The paper's own rewards: the bundled model knows shapes and emoji.
- The teacher of the LCM loss is the bundled model itself, since what distilled it is not shipped."""


def write_page(out: Path, docs: Path) -> list[Path]:
    """Write `docs`/results.md and what it shows; returns the files. Raises ConfigError for a folder without runs."""
    page = Document(out, docs)
    page.add("# What each method gains", *stands_on(page), HOW_TO_READ)
    for reward in page.scale.calls:
        of_reward(page, reward)
    collapse(page)
    ablations(page)
    page.add("## What is not here", NOT_HERE, failures(page))
    option = "" if page.scale.name == "full" else f" BENCH_METHOD=--{page.scale.name}"
    page.add(f"## Again\n\n    make bench-method{option}\n    python -m benchmarks.methods report {out}")
    return page.write()


def stands_on(page: Document) -> list[str]:
    """How many runs of which benchmark, on what; and first of all what they leave out."""
    scale, cells = page.scale, list(plan_of(page.scale))
    missing = sorted({cell.reward.name for cell in cells if missing_packages(cell.reward)})
    total = sum(len(cell) for cell in cells if cell.reward.name not in missing)
    done, hours = sum(is_done(one) for one in page.results), sum(one["minutes"] for one in page.results) / 60
    devices = "; ".join(sorted({one["device"] for one in page.results}))
    seeds = f"{len(scale.seeds)} seed{'s' * (len(scale.seeds) > 1)} of each that counts"
    sentences = [
        "**Not all runs are done.**" if done < total else "",
        f"{done} of {total} runs of the {scale.name} benchmark, {seeds}, {hours:.1f} hours in all; {devices}.",
        f"Left out, since its packages were not installed: {', '.join(missing)}." if missing else "",
        "This page is written by `python -m benchmarks.methods report` from the folders of the runs: do not edit it.",
    ]
    warning = f"> **These are the {scale.name} runs.** {scale.leaves_out}" if scale.leaves_out else ""
    return [warning, " ".join(filter(None, sentences))]


def failures(page: Document) -> str:
    """Runs that were not measured, in their own words."""
    failed = [one for one in page.results if not is_done(one)]
    lines = [f"- {one['reward']}, `{one['variant']}`, seed {one['seed']}: {outcome(one)}" for one in failed]
    return "Runs that failed:\n\n" + "\n".join(lines) if lines else ""
