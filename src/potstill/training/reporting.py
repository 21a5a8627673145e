"""Who is told how a run goes."""

from typing import Any, Protocol

__all__ = ["Reporter", "Silent"]

Row = dict[str, Any]


class Reporter(Protocol):
    """What the loop says while it trains. Every process has one; those that should not talk have a silent one."""

    def started(self, epoch: int, step: int, steps: int, epochs: int, begin: int) -> None:
        """Training begins at epoch ``begin``, or goes on at this epoch and at this step of ``steps`` an epoch."""

    def advanced(self, epoch: int, step: int) -> None:
        """A step is done. Called each step: must be cheap and must not read tensors."""

    def logged(self, row: Row) -> None:
        """The values of the last ``log.every`` steps."""

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """An epoch's values; ``history`` holds the rows of all epochs so far, this one among them."""


class Silent:
    """A reporter that says nothing."""

    def started(self, epoch: int, step: int, steps: int, epochs: int, begin: int) -> None:
        """Nothing."""

    def advanced(self, epoch: int, step: int) -> None:
        """Nothing."""

    def logged(self, row: Row) -> None:
        """Nothing."""

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """Nothing."""
