"""How often is a healthy run ended, and how soon a ruined one? Simulated, or from the logs of real runs.

python benchmarks/health.py                                  a table of simulated runs
python benchmarks/health.py --picture docs/health.svg        one run of each kind, drawn
python benchmarks/health.py runs/demo/log.jsonl              where `train` would have seen trouble in a log
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from lasro.config import HealthSettings
from lasro_client.run.divergence import DivergenceMonitor, Figures
from lasro_client.run.round_record import Means, read_log

NOISE = 0.053
"""Standard deviation of a round's gain in the demo (9 one-step and 9 two-step samples a round, averaged)."""
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


def dips(round: int) -> float:
    """As a demo with a generator's rate of 5e-4 did; its averaged weights ended at +0.06 and +0.03."""
    return -0.15 * min(1, round / 30) + 0.004 * max(0, round - 60)


KINDS = (
    Kind("rises to +0.04, as the demo", lambda r: 0.04 * min(1, r / 50), 125),
    Kind("rises to +0.10, long", lambda r: 0.1 * min(1, r / 200), 1000),
    Kind("never gains anything", lambda r: 0.0, 300),
    Kind("gains 0.04, keeps 0.02", lambda r: 0.04 * min(1, r / 50) - 0.02 * (r > 80), 125),
    Kind("dips to -0.15, recovers", dips, 125),
    Kind("gains 0.06, falls to -0.10", lambda r: 0.06 * min(1, r / 40) if r < 60 else max(-0.1, 0.66 - 0.01 * r), 125),
    Kind("gains 0.03, falls to -0.10", lambda r: 0.03 * min(1, r / 40) if r < 60 else max(-0.1, 0.63 - 0.01 * r), 125),
    Kind("falls to -0.10 at once", lambda r: -0.1 * min(1, r / 15), 125),
    Kind("falls to -0.03", lambda r: -0.03 * min(1, r / 15), 125),
)


def simulated(kind: Kind, seed: int) -> list[float]:
    draws = random.Random(seed)
    return [kind.gain(round) + draws.gauss(0, NOISE) for round in range(kind.rounds)]


class Verdict(NamedTuple):
    """The first round in trouble and why, and the round that the run would go back to; -1: none."""

    round: int
    reason: str
    best: int


def first_troubles(rounds: Iterable[Figures], settings: HealthSettings) -> dict[bool, Verdict]:
    """By whether the run would be ended, or only warned of."""
    monitor, found = DivergenceMonitor(settings), {}
    for round, figures in enumerate(rounds):
        monitor.observe(round, figures)
        if (trouble := monitor.trouble()) is not None:
            found.setdefault(trouble.go_back, Verdict(round, trouble.reason, monitor.best.round))
        if True in found:
            break
    return found


def gains_only(gains: Iterable[float]) -> list[Figures]:
    return [Figures(gain, None, None) for gain in gains]


def table(settings: HealthSettings) -> None:
    print(f"{'true gain':28} {'rounds':>6} {'warned':>7} {'round':>6} {'ended':>7} {'round':>6}")
    for kind in KINDS:
        found = [first_troubles(gains_only(simulated(kind, seed)), settings) for seed in range(RUNS)]
        cells = []
        for ended in (False, True):
            rounds = [verdicts[ended].round + 1 for verdicts in found if ended in verdicts]
            cells += [f"{len(rounds) / RUNS:7.1%}", f"{statistics.median(rounds):6.0f}" if rounds else f"{'-':>6}"]
        print(f"{kind.name:28} {kind.rounds:6} {' '.join(cells)}")


def replay(log: Path, settings: HealthSettings) -> None:
    def mean(means: Means) -> float | None:
        known = [value for value in means.values() if value is not None]
        return statistics.fmean(known) if len(known) == 2 else None

    records = read_log(log)
    rounds = [Figures(mean(r.rewards.gain), r.surrogate.reward_gap, mean(r.generator.drift)) for r in records]
    found = first_troubles(rounds, settings)
    print(f"{log}: {len(records)} rounds" + ("" if found else ", no trouble"))
    for ended, verdict in found.items():
        print(f"  round {verdict.round + 1}: {verdict.reason}" + (", ended" if ended else ""))


def panel(kind: Kind, seed: int, settings: HealthSettings, at: int) -> str:
    """One simulated run: faint its rounds, bold their windows' means, dot the best, line the end."""
    gains, window = simulated(kind, seed), settings.window_rounds
    verdict = first_troubles(gains_only(gains), settings).get(True)
    shown = gains if verdict is None else gains[: verdict.round + 1]

    def x(round: float) -> float:
        return at + LEFT + round / kind.rounds * (WIDTH - LEFT - 10)

    def y(gain: float) -> float:
        return TOP + (0.2 - gain) / 0.4 * HEIGHT

    means = [(r, statistics.fmean(shown[r - window + 1 : r + 1])) for r in range(window - 1, len(shown))]
    parts = [f'<text class="title" x="{at + LEFT}" y="18">{kind.name}</text>']
    parts += [f'<text x="{at + LEFT - 6}" y="{y(v) + 4:.0f}" text-anchor="end">{v:+.1f}</text>' for v in (-0.1, 0, 0.1)]
    parts.append(f'<path class="zero" d="M{x(0):.0f},{y(0):.0f}H{x(kind.rounds):.0f}"/>')
    for css, points in (("raw", list(enumerate(shown))), ("mean", means)):
        parts.append(f'<path class="{css}" d="M{" L".join(f"{x(r):.1f},{y(g):.1f}" for r, g in points)}"/>')
    if verdict is not None:
        parts.append(f'<path class="stop" d="M{x(verdict.round):.0f},{TOP}V{TOP + HEIGHT}"/>')
        parts.append(f'<text x="{x(verdict.round) + 5:.0f}" y="{TOP + 12}">ended, round {verdict.round + 1}</text>')
        best = dict(means)[verdict.best]
        parts.append(f'<circle class="best" cx="{x(verdict.best):.0f}" cy="{y(best):.0f}" r="5"/>')
    return "".join(parts)


def picture(path: Path, settings: HealthSettings) -> None:
    panels = "".join(panel(KINDS[i], 6, settings, place * WIDTH) for place, i in enumerate((0, 4, 5)))
    size = f'viewBox="0 0 {3 * WIDTH} {TOP + HEIGHT + 10}" role="img"'
    label = "Gain over the base of three simulated runs: a healthy one, one that dips and recovers, one that falls"
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
