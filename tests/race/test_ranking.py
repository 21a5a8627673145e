from pathlib import Path

from potstill.analysis.cost import Cost
from potstill.cli.race_board import standings_table
from potstill.headline import HEADLINES
from potstill.race.ranking import Standing, close_calls, ranked
from potstill.race.record import write_record

SMALL, LARGE = Cost(10, 100, 1.0, 40), Cost(20, 200, 2.0, 80)


def one(name: str, cost: Cost, accuracies: dict[int, float], **more: object) -> Standing:
    return Standing(name, f"runs/{name}", "net", ("ce",), cost, accuracies, **more)  # type: ignore[arg-type]


def order(*standings: Standing) -> list[str]:
    return [standing.name for standing in ranked(standings)]


def fronts(*standings: Standing) -> dict[str, tuple[str, ...]]:
    return {standing.name: standing.front for standing in ranked(standings)}


def test_who_got_further_is_before_who_was_better_earlier() -> None:
    early = one("early", SMALL, {2: 99.0})
    further = one("further", SMALL, {2: 50.0, 6: 60.0})
    finished = one("finished", SMALL, {2: 50.0, 6: 61.0, 18: 55.0}, finished=True)
    assert order(early, further, finished) == ["finished", "further", "early"]


def test_at_one_rung_the_accuracy_there_decides_and_of_equal_ones_the_cheaper_is_first() -> None:
    assert order(
        one("c", LARGE, {2: 50.0}), one("b", SMALL, {2: 50.0}), one("a", LARGE, {2: 51.0}), one("z", LARGE, {})
    ) == ["a", "b", "c", "z"]  # fmt: skip


def test_what_failed_is_last_and_on_no_front() -> None:
    failed = one("failed", SMALL, {2: 90.0, 6: 90.0}, failed="The loss is not finite")
    slow = one("slow", LARGE, {2: 10.0})
    assert order(failed, slow) == ["slow", "failed"]
    assert fronts(failed, slow) == {"slow": ("latency", "size"), "failed": ()}


def test_candidates_are_compared_at_the_last_rung_that_both_reached() -> None:
    """The one that went on has the better last accuracy, but at epoch 2 it was behind."""
    winner = one("winner", SMALL, {2: 60.0, 6: 90.0}, finished=True)
    behind = one("behind", LARGE, {2: 59.0})
    ahead = one("ahead", LARGE, {2: 61.0})
    assert fronts(winner, behind, ahead) == {"winner": ("latency", "size"), "ahead": ("latency", "size"), "behind": ()}


def test_a_front_is_of_one_cost() -> None:
    quick, light = Cost(10, 100, 1.0, 80), Cost(10, 100, 2.0, 40)
    assert fronts(one("quick", quick, {2: 60.0}), one("light", light, {2: 50.0})) == {
        "quick": ("latency", "size"),
        "light": ("size",),
    }


def test_equals_do_not_push_each_other_off_a_front() -> None:
    assert fronts(one("a", SMALL, {2: 50.0}), one("b", SMALL, {2: 50.0})) == {
        "a": ("latency", "size"),
        "b": ("latency", "size"),
    }


def test_a_close_call_is_between_the_last_that_went_on_and_the_first_that_did_not() -> None:
    standings = [
        one("a", SMALL, {2: 80.0, 6: 90.0}, finished=True), one("b", SMALL, {2: 70.0, 6: 60.0}),
        one("c", SMALL, {2: 69.9}), one("d", SMALL, {2: 30.0}),
    ]  # fmt: skip
    (call,) = close_calls(standings, [2, 6], images=1000)
    assert (call.epoch, call.kept, call.left, round(call.points, 6)) == (2, "b", "c", 0.1)
    assert round(call.error, 2) == 2.05  # sqrt((70 * 30 + 69.9 * 30.1) / 1000)
    assert close_calls(standings, [2, 6], images=10**6) == []


def test_a_record_of_another_task_names_its_value_and_calls_nothing_close(tmp_path: Path) -> None:
    standings = [one("a", SMALL, {2: 30.1, 6: 40.0}, finished=True), one("b", SMALL, {2: 30.0})]
    more = {"images": 100, "finished": True, "machine": {}, "costs": {}, "teacher": None}
    plan, epochs = [(2, 2), (6, 1)], {"spent": 8, "full": 12}
    found = write_record(tmp_path, standings, plan, epochs, headline=HEADLINES["detection"], **more)
    assert [rung["ap"] for rung in found["rungs"]] == [{"a": 30.1, "b": 30.0}, {"a": 40.0}]
    assert [entry["ap"] for entry in found["candidates"]] == [40.0, 30.0]
    assert found["close"] == []
    assert "chosen by their AP on the validation images" in found["note"]
    assert "no decision is called close here" in found["note"]
    known = write_record(tmp_path, standings, plan, epochs, headline=HEADLINES["classification"], **more)
    assert [call["kept"] for call in known["close"]] == ["a"]
    assert known["note"].startswith("The candidates were chosen by their accuracy on")
    assert "called close" not in known["note"]


def test_the_board_has_the_tasks_value_in_its_heads() -> None:
    table = standings_table([one("a", SMALL, {2: 30.1})], [(2, 1), (6, 1)], 6, HEADLINES["segmentation"])
    assert [str(column.header) for column in table.columns][4:6] == ["mIoU % at 2", "mIoU % at 6"]
