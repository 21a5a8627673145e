"""How a race shows itself: a table that lives on a terminal, plain lines on a pipe."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from potstill.cli.tables import plain_table
from potstill.headline import Headline
from potstill.training.progress import Lines
from potstill.training.reporting import Reporter, Silent

if TYPE_CHECKING:
    from potstill.race.ranking import Standing
    from potstill.training.folder import RunFolder

__all__ = ["Board", "standings_table"]

Row = dict[str, Any]


def standings_table(
    standings: Sequence["Standing"],
    rungs: Sequence[tuple[int, int]],
    epochs: int,
    headline: Headline,
    training: Mapping[str, str] | None = None,
) -> Table:
    """The candidates, the best first: accuracy at each rung, cost, and the fronts that they are on.

    Args:
        standings: ranked.
        rungs: the epoch of each rung, and how many candidates train to it.
        epochs: of a whole run.
        headline: what the candidates are judged by.
        training: what to show as the state of a candidate that trains just now, by its name.
    """
    rows = []
    for rank, one in enumerate(standings, start=1):
        state = (training or {}).get(one.name) or _state(one, epochs)
        reached = [f"{one.accuracies[epoch]:.2f}" if epoch in one.accuracies else "" for epoch, _ in rungs]
        # One unit a column, so that the eye compares.
        cost = [
            f"{one.cost.parameters:,}", f"{one.cost.macs / 1e6:,.1f} M", f"{one.cost.latency_ms:.2f} ms",
            f"{one.cost.bytes / 1024**2:,.2f} MiB",
        ]  # fmt: skip
        rows.append([str(rank), one.name, one.model, state, *reached, *cost, ", ".join(one.front)])
    accuracies = [f">{headline.short} {headline.unit} at {epoch}" for epoch, _ in rungs]
    columns = [">", "candidate", "network", ">epochs", *accuracies, ">parameters", ">MACs", ">latency", ">size"]
    return plain_table([*columns, "on the front of"], rows)


def _state(one: "Standing", epochs: int) -> str:
    if one.failed is not None:
        return "failed"
    return f"{one.epoch} of {epochs}"


class Board:
    """Shows a race while it runs; a :class:`potstill.race.run.Watcher`.

    Args:
        console: a live table where it is a terminal, lines elsewhere.
        epochs: of a whole run.
        headline: what the candidates are judged by.
        talks: false for all processes but the first: theirs are silent.

    Attributes:
        standings: the candidates as they were last told, ranked.
        rungs: the race's plan.
    """

    def __init__(self, console: Console, epochs: int, headline: Headline, talks: bool = True) -> None:
        self.console, self.epochs, self.headline, self.talks = console, epochs, headline, talks
        self.standings: list[Standing] = []
        self.rungs: list[tuple[int, int]] = []
        self.training: dict[str, str] = {}
        lives = talks and console.is_terminal
        self._live = Live(get_renderable=self._table, console=console, transient=True) if lives else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stands(self, standings: list["Standing"], rungs: list[tuple[int, int]]) -> None:
        """Take up where the candidates are; on a pipe say who was there already."""
        before = {one.name: one.epoch for one in self.standings}
        trained, self.training = self.training, {}
        self.standings, self.rungs = standings, rungs
        for one in standings if self.talks and self._live is None else ():
            if one.epoch != before.get(one.name, 0) and one.name not in trained:
                accuracy = f"{self.headline.short} {one.accuracy:.2f} {self.headline.unit}"
                self.console.print(f"{one.name}  at epoch {one.epoch}  {accuracy}", soft_wrap=True)

    def reporter(self, title: str, folder: "RunFolder") -> Reporter:
        """Who writes a candidate's rows into its folder, and shows its epochs."""
        return _Shown(self, title, folder) if self.talks else Silent()

    def show(self, name: str, epoch: int, row: Row) -> None:
        """An epoch of a candidate that trains."""
        one = self.headline
        accuracy = f"  {one.short} {row[one.key]:.2f} {one.unit}" if one.key in row else ""
        if self._live is None:
            text = f"{name}  epoch {epoch}/{self.epochs}  loss {row['total']:.4g}{accuracy}  {row['seconds']:.1f} s"
            self.console.print(text, soft_wrap=True)
        self.training[name] = f"{epoch} of {self.epochs} ..{accuracy}"

    def _table(self) -> Table | str:
        if not self.standings:
            return ""
        return standings_table(self.standings, self.rungs, self.epochs, self.headline, self.training)


class _Shown(Lines):
    """Writes what every run writes; its lines go nowhere, and its epochs to the board."""

    def __init__(self, board: Board, title: str, folder: "RunFolder") -> None:
        super().__init__(Console(quiet=True), title, folder, batch_size=1)
        self.board = board
        self.name = folder.path.name

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """Write the table of all epochs, and show this one."""
        super().finished_epoch(row, history)
        self.board.show(self.name, row["epoch"], row)
