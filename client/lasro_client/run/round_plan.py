"""How many rounds a run of stage 2 will have, by its settings, its budget and its schedule."""

from __future__ import annotations

from lasro.config import RunSettings
from lasro_client.run.progress import Progress
from lasro_client.run.time_budget import TimeBudget
from lasro_client.run.train_schedule import LONGEST_PILOT, TrainSchedule


class RoundPlan:
    """Of one run. It keeps nothing of its own: all is in `Progress` and the schedule."""

    def __init__(self, config: RunSettings, schedule: TrainSchedule, clock: TimeBudget) -> None:
        self.config, self.schedule, self.clock = config, schedule, clock

    def most_rounds(self, progress: Progress) -> int:
        """After which the run is over: as many as were asked for or are planned, or as fit into its minutes."""
        limits = (self.config.train.max_rounds, progress.planned, self.schedule.planned)
        return min(limit for limit in limits if limit is not None)

    def num_rounds(self, progress: Progress) -> int:
        """How many there will be, by what is known: those, or as many as the reward calls are enough for."""
        affordable = self.affordable(progress)
        most = self.most_rounds(progress)
        return most if affordable is None else max(progress.round, min(most, affordable))

    def affordable(self, progress: Progress) -> int | None:
        """Rounds that the run's reward calls are enough for, those done included; None without a limit."""
        limit, done = self.config.budget.max_reward_calls, progress.round
        if limit is None or not progress.reward_calls:
            return None
        return done + int((limit - progress.reward_calls) * done / progress.reward_calls)

    def fitting(self, progress: Progress) -> int | None:
        """Rounds that minutes and reward calls are enough for; None where neither is known to be short."""
        known = [progress.planned, self.affordable(progress)]
        return min((rounds for rounds in known if rounds is not None), default=None)

    def share(self, progress: Progress) -> float:
        """Of this phase's rounds, what will be done with the next, 0 to 1."""
        began = self.schedule.began
        rounds = LONGEST_PILOT if self.schedule.phase == "pilot" else self.num_rounds(progress) - began
        return min(1.0, (progress.round + 1 - began) / max(1, rounds))

    def after_round(self, progress: Progress) -> Progress:
        """With a new estimate of the rounds that fit into the minutes, where there is one."""
        fitting = self.clock.fitting_rounds(progress.round, progress.elapsed_s)
        return progress if fitting is None else progress._replace(planned=min(fitting, self.config.train.max_rounds))

    def decay_steps(self, progress: Progress, updates: int) -> int | None:
        """Updates over which the learning rate falls, the generator having had so many since it began; None: it stays.

        What the settings ask for shrinks with the rounds; a run from nothing lets it fall over its training.
        """
        settings, num_rounds = self.config.train, self.num_rounds(progress)
        if settings.decay_steps is not None:
            return max(1, round(settings.decay_steps * num_rounds / settings.max_rounds))
        if settings.is_from_nothing and self.schedule.phase == "training":
            return max(1, updates + (num_rounds - progress.round) * settings.generator_steps)
        return None
