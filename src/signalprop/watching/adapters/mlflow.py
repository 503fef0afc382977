"""A watched run in MLflow."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from signalprop.errors import SignalpropError
from signalprop.watching.actions import line
from signalprop.watching.adapters import exporting
from signalprop.watching.adapters.adapter import Adapter
from signalprop.watching.adapters.behind import Behind
from signalprop.watching.adapters.packages import needed
from signalprop.watching.adapters.summary import Sites, Told
from signalprop.watching.sample import Alarm

#: what MLflow takes in one request: metrics, tags
MOST_METRICS, MOST_TAGS = 1000, 100
#: what it takes of a name and of a tag's value
LONGEST_NAME, LONGEST_TAG = 250, 500
#: alerts that become tags of the run; more are only counted
MOST_ALERTS = 50
#: seconds that the end of a run waits for the server
PATIENCE = 30.0


class MLflow(Adapter):
    """Tells MLflow what a watched run shows: `sp.watch(..., listeners=[MLflow()])`.

    Of every statistic three metrics (smallest, median and largest over the sites), alerts as tags
    `signalprop/alert/1` and so on and as the metric `signalprop/alerts`; the sites behind smallest
    and largest, as they were last, become tags at the end.

    Args:
        run: a run or its id; None for the one that is active when training starts.
        client: an MlflowClient; None for one of the current tracking URI.
        prefix: of all names.
        sites: True for a metric of every site and statistic too, or patterns of names of sites.
        statistics: names of those that are told; None for all.
        scalars: numbers that the loop logs: those of sampled steps (`sampled`), `all`, `none`.
        every: seconds between requests.

    Raises:
        SignalpropError: an argument is not what it should be.
        MissingPackageError: `mlflow` is not installed.

    Note:
        Cost: some ten microseconds per number on sampled steps. A thread of its own sends them; at
        the end it is waited for, half a minute at most.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        client: Any = None,
        prefix: str = "signalprop",
        sites: Sites = False,
        statistics: Iterable[str] | None = None,
        scalars: str = "sampled",
        every: float = 5.0,
    ) -> None:
        super().__init__(prefix=prefix, sites=sites, statistics=statistics, scalars=scalars)
        self._package = needed("mlflow", "mlflow", "MLflow")
        self._entities = needed("mlflow.entities", "mlflow", "MLflow")
        if client is not None and not hasattr(client, "log_batch"):
            raise SignalpropError(f"client={type(client).__name__} is no MlflowClient")
        self._id = _run_id(run)
        self._client: Any = client
        self._every = every
        self._metrics: list[Any] = []
        self._tags: list[Any] = []
        self._where: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._alarms = 0
        self._behind = Behind("MLflow")
        self._sent = time.monotonic()

    def put(self, told: Told) -> None:
        """Hand numbers of a step on."""
        self._connect()
        now = int(time.time() * 1000)
        for name, value in told.numbers.items():
            # in MLflow's databases a number has the range of float32 at best
            self._metrics.append(self._entities.Metric(self._named(name), value, now, told.step))
        self._where.update(told.where)
        full = len(self._metrics) >= MOST_METRICS
        if full or time.monotonic() - self._sent > self._every:
            self._send()

    def say(self, alarm: Alarm) -> None:
        """Hand an alert on."""
        self._alarms += 1
        prefix = self.summary.prefix
        if self._alarms <= MOST_ALERTS:
            self._tag(f"{prefix}/alert/{self._alarms}", line(alarm))
        self.put(Told(alarm.step, {f"{prefix}/alerts": float(self._alarms)}))
        self._send()

    def close(self) -> None:
        """Send the rest, and wait until it is there."""
        for name, site in self._where.items():
            self._tag(f"{name}/site", site)
        if self._metrics or self._tags:
            self._send()
        self._behind.close(PATIENCE)

    def _tag(self, name: str, value: str) -> None:
        self._tags.append(self._entities.RunTag(self._named(name), value[:LONGEST_TAG]))

    def _send(self) -> None:
        self._connect()
        self._sent = time.monotonic()
        metrics, tags = self._metrics, self._tags
        self._metrics = []
        self._tags = []
        while metrics or tags:
            call = functools.partial(
                self._client.log_batch,
                self._id,
                metrics=metrics[:MOST_METRICS],
                tags=tags[:MOST_TAGS],
            )
            metrics, tags = metrics[MOST_METRICS:], tags[MOST_TAGS:]
            self._behind.do(call)

    def _connect(self) -> None:
        if self._id is None:
            active = self._package.active_run()
            if active is None:
                raise SignalpropError(
                    "no MLflow run is active; call mlflow.start_run() first, or give it to MLflow"
                )
            self._id = active.info.run_id
        if self._client is None:
            self._client = self._package.MlflowClient()

    def _named(self, name: str) -> str:
        """A name as MLflow takes it; the same for the same."""
        found = self._names.get(name)
        if found is None:
            found = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
            found = self._names[name] = found[:LONGEST_NAME]
        return found


def _run_id(run: Any) -> str | None:
    if run is None or isinstance(run, str):
        return run
    found = getattr(getattr(run, "info", None), "run_id", None)
    if not isinstance(found, str):
        raise SignalpropError(f"MLflow({type(run).__name__}): give a run or its id")
    return found


def export(
    run: str | Path,
    to: Any = None,
    *,
    client: Any = None,
    prefix: str = "signalprop",
    sites: Sites = False,
    statistics: Iterable[str] | None = None,
) -> int:
    """Hand a recorded run to MLflow.

    Args:
        run: the run file.
        to: an MLflow run or its id; None for the active one. It stays open.
        client: an MlflowClient; None for one of the current tracking URI.
        prefix: see `MLflow`.
        sites: see `MLflow`.
        statistics: see `MLflow`.

    Returns:
        How many sampled steps were handed over.

    Raises:
        SignalpropError: the file cannot be read, or no run is active.
        MissingPackageError: `mlflow` is not installed.
    """
    adapter = MLflow(
        to, client=client, prefix=prefix, sites=sites, statistics=statistics, scalars="all"
    )
    return exporting.export(run, adapter)
