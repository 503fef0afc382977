"""All candidates of one call: treated, entered into the race, and ranked."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from signalprop.capture import batch as batches
from signalprop.cures.cure import Cure
from signalprop.cures.training import Training
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.engine import Engine
from signalprop.cures.trials.prescribe import Candidate
from signalprop.cures.trials.race import UNTOUCHED, Tell, Track, race
from signalprop.cures.trials.result import Trial, best_of, judged
from signalprop.cures.trials.store import Store
from signalprop.errors import SignalpropError


@dataclass
class Entrant:
    """A candidate in the race."""

    cures: Candidate
    trainings: list[Training]
    track: Track


class Bench:
    """All candidates of one call."""

    def __init__(
        self,
        bases: list[Training],
        seeds: tuple[int, ...],
        data: Data,
        steps: int,
        store: Store,
        engine: Engine,
        tell: Tell,
        batch_dim: int,
    ) -> None:
        self.bases, self.seeds, self.data, self.steps = bases, seeds, data, steps
        self.store, self.engine, self.tell, self.batch_dim = store, engine, tell, batch_dim
        self.entrants: dict[str, Entrant] = {}
        self.rejected: dict[str, str] = {}

    def round(self, plan: list[Candidate], *, with_untouched: bool = False) -> bool:
        """Try candidates; whether it went to its end."""
        entered = [self._enter(UNTOUCHED, (), self.bases)] if with_untouched else []
        for candidate in plan:
            made = self._treated(candidate)
            if made is not None:
                used, trainings = made
                if name_of(used) not in self.entrants:
                    entered.append(self._enter(name_of(used), used, trainings))
        if not entered:
            return True
        tracks = [e.track for e in entered]
        return race(tracks, self.seeds, self.steps, self.engine, str(self.store.folder), self.tell)

    def has(self, candidate: Candidate) -> bool:
        """Whether it has been tried."""
        return name_of(candidate) in self.entrants

    def _enter(self, name: str, cures: Candidate, trainings: list[Training]) -> Entrant:
        key = re.sub(r"[^a-z0-9]+", "-", name.lower())
        for seed, training in zip(self.seeds, trainings, strict=True):
            if not self.store.has(f"candidate-{key}-{seed}"):
                self.store.put(f"candidate-{key}-{seed}", training)
        entrant = Entrant(cures, trainings, Track(key))
        self.entrants[name] = entrant
        return entrant

    def _treated(self, candidate: Candidate) -> tuple[Candidate, list[Training]] | None:
        """The trainings of all seeds; cures that do not apply are left out of a combination."""
        used = list(candidate)
        while used:
            made = self._with_all(used)
            if not isinstance(made, Cure):
                return tuple(used), made
            used.remove(made)
        return None

    def _with_all(self, cures: list[Cure]) -> list[Training] | Cure:
        """The trainings of all seeds; or the first cure that does not apply."""
        made: list[Training] = []
        measured: dict[Cure, Training] = {}
        sample = batches.first_of(list(self.data.train))[0]
        for seed, base in zip(self.seeds, self.bases, strict=True):
            training = base
            for one in cures:
                if one in measured:  # what was measured for the first seed stands for all
                    training = replace(measured[one], model=training.model)
                    continue
                torch.manual_seed(1000 + seed)
                settings = one.changes == "settings"
                try:
                    training = one.treat(training, list(self.data.train) if settings else sample)
                except SignalpropError as error:
                    self.rejected.setdefault(one.name, str(error))
                    return one
                if settings:
                    measured[one] = training
            # lines, rates and the like are those of the first seed
            made.append(replace(made[0], model=training.model) if made else training)
        return made

    def best(self) -> Entrant | None:
        """The best that helps."""
        found = best_of(self.trials())
        return None if found is None else self.entrants[found.name]

    def trials(self) -> list[Trial]:
        """Candidates that have finished a leg, best first; not the untouched network."""
        made = [self._trial(name) for name, e in self.entrants.items() if e.track.outcomes]
        order = {"helps": 0, "better": 0, "no difference": 1, "worse": 1, "failed": 2}
        made = [t for t in made if t.name != UNTOUCHED]
        return sorted(made, key=lambda t: (t.stopped, order[t.verdict], -t.mean))

    def untouched(self) -> Trial:
        """The network as it is."""
        return self._trial(UNTOUCHED)

    def _trial(self, name: str) -> Trial:
        entrant, plain = self.entrants[name], self.entrants[UNTOUCHED]
        legs = entrant.track.outcomes
        last = legs[-1]
        beside = plain.track.outcomes[len(legs) - 1]
        mine = tuple(o.metric for o in last)
        theirs = tuple(o.metric for o in beside)
        failed = next((o.failed for o in last if o.failed), "")
        names = {o.metric_name for o in (*last, *beside) if o.metric_name}
        if len(names) > 1:
            failed = f"judged by {last[0].metric_name}, the untouched network by another metric"
        sampling = max((o.sampling for o in (*last, *beside)), default=0.0)
        if not self.data.apart:  # these samples are all there are
            sampling = 0.0
        verdict = "untouched" if name == UNTOUCHED else judged(mine, theirs, sampling)
        return Trial(
            name=name,
            cures=tuple(c.name for c in entrant.cures),
            lines=entrant.trainings[0].lines,
            verdict="failed" if failed and name != UNTOUCHED else verdict,
            metric=mine,
            untouched=theirs,
            losses=tuple(o.loss for o in last),
            curves=tuple(o.curve for o in last),
            step=max(o.step for o in last),
            stopped=entrant.track.stopped,
            failed=failed,
            seconds=round(sum(o.seconds for o in last), 3),
        )


def name_of(candidate: Candidate) -> str:
    """Names of its cures, joined."""
    return " + ".join(c.name for c in candidate)
