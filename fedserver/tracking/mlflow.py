"""MLflow: a run of its own for each run, in the experiment `motley`."""

from __future__ import annotations

from fedserver.tracking.closed import ClosedRound

EXPERIMENT = "motley"
RUN_TAG = "motley.run"


class MlflowTracker:
    """Logs to an MLflow server or folder."""

    def __init__(self, uri: str) -> None:
        """Make it; raise ImportError without the package `mlflow` or `mlflow-skinny`."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._runs: dict[str, str] = {}

    def round_closed(self, closed: ClosedRound) -> None:
        """Log a round's figures as metrics whose step is the round."""
        run = self._runs.get(closed.run) or self._find(closed)
        self._runs[closed.run] = run
        for name, value in closed.figures.items():
            self._client.log_metric(run, name, value, int(closed.closed * 1000), closed.round)

    def _find(self, closed: ClosedRound) -> str:
        """Return MLflow's id of a run, which an earlier server may have begun."""
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        known = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{closed.run}'")
        if known:
            return str(known[0].info.run_id)
        tags = {RUN_TAG: closed.run}
        made = self._client.create_run(experiment, tags=tags, run_name=closed.run_name)
        return str(made.info.run_id)

    def close(self) -> None:
        """Nothing is held back."""
