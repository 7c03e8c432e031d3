"""How often is a healthy run ended, and how soon a ruined one? Simulated, or from the logs of real runs.

python benchmarks/health.py                                  a table of simulated runs
python benchmarks/health.py --picture docs/health.svg        one run of each kind, drawn
python benchmarks/health.py runs/demo/log.jsonl              where `train` would have seen trouble in a log
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from lasro.config import HealthSettings
from lasro_client.health import Figures, Health

NOISE = 0.053
"""Standard deviation of a round's gain in the demo (9 samples of each stage a round, both stages averaged)."""
RUNS = 1000
WIDTH, HEIGHT, LEFT, TOP = 300, 190, 40, 34
STYLE = """
svg{font:12px system-ui,sans-serif;background:#fff}text{fill:#555}.title{fill:#222;font-weight:600}
.raw{fill:none;stroke:#1c6f86;opacity:.35}.mean{fill:none;stroke:#1c6f86;stroke-width:2.4}
.zero{stroke:#999;stroke-dasharray:4 4}.stop{stroke:#b8621b;stroke-width:1.6}.best{fill:#b8621b}
"""


class Kind(NamedTuple):
    """A kind of run: its true gain by round, and its length."""

    name: str
    gain: Callable[[int], float]
    rounds: int


KINDS = (
    Kind("rises to +0.04, as the demo", lambda r: 0.04 * min(1, r / 50), 125),
    Kind("rises to +0.10, long", lambda r: 0.1 * min(1, r / 200), 1000),
    Kind("never gains anything", lambda r: 0.0, 300),
    Kind("gains 0.04, keeps 0.02", lambda r: 0.04 * min(1, r / 50) - 0.02 * (r > 80), 125),
    Kind("dips to -0.03, then gains", lambda r: -0.03 * min(1, r / 10) + 0.003 * min(30, max(0, r - 20)), 150),
    Kind("gains 0.04, falls to -0.10", lambda r: 0.04 * min(1, r / 50) if r < 60 else max(-0.1, 0.64 - 0.01 * r), 125),
    Kind("falls to -0.10 at once", lambda r: -0.1 * min(1, r / 15), 125),
    Kind("falls to -0.03", lambda r: -0.03 * min(1, r / 15), 125),
)


def simulated(kind: Kind, seed: int) -> list[float]:
    draws = random.Random(seed)
    return [kind.gain(round) + draws.gauss(0, NOISE) for round in range(kind.rounds)]


def first_trouble(rounds: Iterable[Figures], settings: HealthSettings) -> tuple[int, str, int] | None:
    """Round, reason and best round of the first trouble."""
    health = Health(settings)
    for round, figures in enumerate(rounds):
        health.observe(round, figures)
        if (trouble := health.trouble()) is not None:
            return round, trouble, health.best.round
    return None


def table(settings: HealthSettings) -> None:
    print(f"{'true gain':30} {'rounds':>6} {'ended':>7} {'median round':>13}")
    for kind in KINDS:
        found = [
            first_trouble([Figures(gain, None, None) for gain in simulated(kind, seed)], settings)
            for seed in range(RUNS)
        ]
        ended = [trouble[0] + 1 for trouble in found if trouble is not None]
        median = f"{statistics.median(ended):.0f}" if ended else "-"
        print(f"{kind.name:30} {kind.rounds:6} {len(ended) / RUNS:7.1%} {median:>13}")


def replay(log: Path, settings: HealthSettings) -> None:
    def both(entry: dict[str, float | None] | None) -> float | None:
        values = [] if entry is None else list(entry.values())
        return None if not values or None in values else statistics.fmean(v for v in values if v is not None)

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    trouble = first_trouble(
        [Figures(both(line.get("gain")), line.get("reward_gap"), both(line.get("drift"))) for line in lines], settings
    )
    print(
        f"{log}: {len(lines)} rounds, " + ("no trouble" if trouble is None else f"round {trouble[0] + 1}: {trouble[1]}")
    )


def panel(kind: Kind, seed: int, settings: HealthSettings, at: int) -> str:
    """One simulated run: faint its rounds, bold their windows' means, dot the best, line the end."""
    gains, window = simulated(kind, seed), settings.window_rounds
    trouble = first_trouble([Figures(gain, None, None) for gain in gains], settings)
    shown = gains if trouble is None else gains[: trouble[0] + 1]

    def x(round: float) -> float:
        return at + LEFT + round / kind.rounds * (WIDTH - LEFT - 10)

    def y(gain: float) -> float:
        return TOP + (0.2 - gain) / 0.4 * HEIGHT

    means = [(r, statistics.fmean(shown[r - window + 1 : r + 1])) for r in range(window - 1, len(shown))]
    best = max(means, key=lambda point: point[1])
    parts = [f'<text class="title" x="{at + LEFT}" y="18">{kind.name}</text>']
    parts += [f'<text x="{at + LEFT - 6}" y="{y(v) + 4:.0f}" text-anchor="end">{v:+.1f}</text>' for v in (-0.1, 0, 0.1)]
    parts.append(f'<path class="zero" d="M{x(0):.0f},{y(0):.0f}H{x(kind.rounds):.0f}"/>')
    for css, points in (("raw", list(enumerate(shown))), ("mean", means)):
        parts.append(f'<path class="{css}" d="M{" L".join(f"{x(r):.1f},{y(g):.1f}" for r, g in points)}"/>')
    if trouble is not None:
        parts.append(f'<path class="stop" d="M{x(trouble[0]):.0f},{TOP}V{TOP + HEIGHT}"/>')
        parts.append(f'<text x="{x(trouble[0]) + 5:.0f}" y="{TOP + 12}">ended, round {trouble[0] + 1}</text>')
        where = (x(best[0]), y(best[1])) if trouble[2] >= 0 else (x(0), y(0))
        parts.append(f'<circle class="best" cx="{where[0]:.0f}" cy="{where[1]:.0f}" r="5"/>')
    return "".join(parts)


def picture(path: Path, settings: HealthSettings) -> None:
    panels = "".join(panel(KINDS[i], 6, settings, place * WIDTH) for place, i in enumerate((0, 5, 6)))
    size = f'viewBox="0 0 {3 * WIDTH} {TOP + HEIGHT + 10}" role="img"'
    label = "Gain over the base of three simulated runs: a healthy one, one that falls, one that never rose"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} aria-label="{label}"><style>{STYLE}</style>{panels}</svg>\n'
    path.write_text(svg, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("logs", type=Path, nargs="*", help="log.jsonl of runs")
    parser.add_argument("--picture", type=Path, help="write it here")
    given, settings = parser.parse_args(), HealthSettings()
    for log in given.logs:
        replay(log, settings)
    if given.picture is not None:
        picture(given.picture, settings)
    if not given.logs and given.picture is None:
        table(settings)


if __name__ == "__main__":
    main()
