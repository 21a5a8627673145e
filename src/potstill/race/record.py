"""``race.json``: where a race stands, and in the end its outcome."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.analysis.cost import Cost
from potstill.errors import RunError
from potstill.files import write_whole
from potstill.headline import Headline
from potstill.plain_json import to_json
from potstill.race.ranking import CloseCall, Standing, close_calls

__all__ = ["RECORD", "known_costs", "write_record"]

RECORD = "race.json"

_NOTE = (
    "The candidates were chosen by their {accuracy} on the validation images, so the best one's {accuracy} there is "
    "optimistic. Judge it by images that had no part in the race."
)
_NOT_CLOSE = (
    " How far {accuracy} goes by chance, one run does not tell, so no decision is called close here; other seeds of "
    "the first ones would show it."
)


def write_record(
    folder: Path, standings: Sequence[Standing], plan: Sequence[tuple[int, int]], epochs: Mapping[str, int], *,
    headline: Headline, images: int, finished: bool, machine: Mapping[str, Any], costs: Mapping[str, Cost],
    teacher: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the file, whole; return what is in it.

    Args:
        folder: the race's.
        standings: ranked.
        plan: the epoch of each rung, and how many candidates train to it.
        epochs: ``spent`` so far, and ``full``, those of all candidates trained to the end.
        headline: what the candidates are judged by; its key is that of their accuracies in the file.
        images: how many the candidates are judged by.
        finished: whether the race is over.
        machine: where the costs were measured.
        costs: by network.
        teacher: its accuracies and cost, once a finished candidate has them.
    """
    rungs = []
    for epoch, count in plan:
        reached = {one.name: one.accuracies[epoch] for one in standings if epoch in one.accuracies}
        rungs.append({"epoch": epoch, "planned": count, headline.key: reached})
    close: list[CloseCall] = []
    if finished and headline.proportion:
        close = close_calls(standings, [epoch for epoch, _ in plan], images)
    record = {
        "finished": finished,
        "winner": standings[0].name if finished and standings[0].finished else None,
        "epochs": dict(epochs),
        "rungs": rungs,
        "candidates": [
            {
                "rank": rank, "name": one.name, "folder": one.folder, "network": one.model, "methods": one.methods,
                "epoch": one.epoch, "finished": one.finished, "failed": one.failed,
                headline.key: one.accuracy,
                "front": one.front, **asdict(one.cost),
            }
            for rank, one in enumerate(standings, start=1)
        ],
        "teacher": teacher,
        "images": images,
        "close": [asdict(call) for call in close],
        "note": _note(headline),
        "machine": dict(machine),
        "costs": {network: asdict(cost) for network, cost in costs.items()},
    }  # fmt: skip
    write_whole(folder / RECORD, to_json(record, indent=2) + "\n")
    return record


def _note(headline: Headline) -> str:
    said = _NOTE.format(accuracy=headline.noun)
    return said if headline.proportion else said + _NOT_CLOSE.format(accuracy=headline.noun)


def known_costs(folder: Path, machine: Mapping[str, Any]) -> dict[str, Cost]:
    """What an interrupted race has measured on this machine, by network: it goes on with the same numbers.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
        if record["machine"] != machine:
            return {}
        return {network: Cost(**cost) for network, cost in record["costs"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}). Delete it, and the same command goes on.") from None
