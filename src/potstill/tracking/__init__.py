"""Telling trackers how a run goes: TensorBoard, trackio, MLflow, Weights & Biases. Nobody is told unless asked for."""

from potstill.tracking.reporting import tracked
from potstill.tracking.tracker import TrackedRun, Tracker
from potstill.tracking.trackers import TRACKERS, must_be_there

__all__ = ["TRACKERS", "TrackedRun", "Tracker", "must_be_there", "tracked"]
