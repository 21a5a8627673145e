"""Pictures on a report: small, in their own colours, and read from nowhere but the run's own folder."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.report.task_runs import HOSTILE, write_task_run

from potstill.errors import RunError
from potstill.report import write_report
from potstill.report.blocks import Pictures
from potstill.report.colours import class_colour
from potstill.report.picture_files import read_pictures
from potstill.report.pictures import pictures

Entry = dict[str, Any]
Kept = Callable[..., Path]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A run's folder with one image of 100 x 50 and the entries given, each over one that is right."""

    def make(*entries: Any, size: tuple[int, int] = (100, 50)) -> Path:
        room = tmp_path / "run" / "pictures"
        room.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 30, 30)).save(room / "a.jpg")
        right = {"file": "pictures/a.jpg", "name": "a", "size": [100, 50], "truth": []}
        content = [right | entry if isinstance(entry, dict) else entry for entry in entries]
        (room / "pictures.json").write_text(json.dumps(content), encoding="utf-8")
        return room.parent

    return make


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_run_without_pictures_has_none(tmp_path: Path):
    assert read_pictures(tmp_path) == ()


def test_boxes_come_with_names_and_the_surest_first(kept: Kept):
    rows = [[10, 10, 30, 40, 0, 0.25], [20, 5, 60, 45, "cell", 0.75], [0, 0, 9, 9, 7, 0.5]]
    (one,) = read_pictures(kept({"truth": [[1, 2, 11, 22, 1]], "student": rows}), ["red", "white"])
    (true,) = one.boxes["truth"]
    assert (true.x, true.y, true.width, true.height, true.label, true.score) == (1, 2, 10, 20, "white", None)
    assert [(box.label, box.score) for box in one.boxes["student"]] == [("cell", 0.75), ("class 7", 0.5), ("red", 0.25)]
    assert one.size == (100, 50)
    assert list(one.boxes) == ["truth", "student"]


def test_boxes_end_where_the_picture_ends_and_those_outside_are_left_out(kept: Kept):
    rows = [[-20, -5, 30, 90, 0, 0.9], [120, 10, 140, 20, 0, 0.8], [30, 10, 20, 20, 0, 0.7], [5, 5, 5, 9, 0, 0.6]]
    (one,) = read_pictures(kept({"student": rows}))
    assert [(b.x, b.y, b.width, b.height) for b in one.boxes["student"]] == [(0, 0, 30, 50)]


def test_a_hundred_boxes_of_a_network_are_shown_and_every_true_one(kept: Kept):
    rows = [[1, 1, 20, 20, 0, n / 1000] for n in range(300)]
    (one,) = read_pictures(kept({"student": rows, "truth": [row[:5] for row in rows]}))
    assert [box.score for box in one.boxes["student"]][::99] == [0.299, 0.2]
    assert len(one.boxes["truth"]) == 300


def test_twelve_pictures_are_shown_and_none_is_wider_than_320(kept: Kept):
    found = read_pictures(kept(*[{"size": [1000, 500]}] * 20, size=(1000, 500)))
    assert len(found) == 12
    assert opened(found[0].image).size == (320, 160)
    assert found[0].size == (1000, 500), "boxes keep the pixels that they were measured in"
    small = read_pictures(kept({}, size=(60, 30)))
    assert opened(small[0].image).size == (60, 30)
    tall = read_pictures(kept({}, size=(300, 3000)))
    assert opened(tall[0].image).height == 480


def test_of_a_file_only_its_pixels_come_along(kept: Kept):
    folder = kept({})
    photograph = Image.new("RGB", (80, 40), (0, 128, 255))
    facts = Image.Exif()
    facts[0x010E] = "where it was taken"
    photograph.save(folder / "pictures" / "a.jpg", exif=facts, comment=b"a secret")
    image = opened(read_pictures(folder)[0].image)
    assert not image.getexif()
    assert "comment" not in image.info


def test_masks_have_a_colour_for_each_class_and_are_clear_elsewhere(kept: Kept):
    folder = kept()
    mask = np.zeros((50, 100), np.uint8)
    mask[10:20, 30:60], mask[30:40, 10:20], mask[:5] = 1, 9, 255
    Image.fromarray(mask).save(folder / "pictures" / "m.png")
    indexed = Image.fromarray(mask)
    indexed.putpalette([7] * 768)  # a palette says how a class is painted, not which it is
    indexed.save(folder / "pictures" / "p.png")
    kept({"truth": "pictures/m.png", "student": "pictures/p.png"})
    (one,) = read_pictures(folder, ["Background", "cell"])
    assert one.masks["truth"] == one.masks["student"]
    assert one.masks["truth"].labels == {"cell": class_colour(1), "class 9": class_colour(9)}
    pixels = np.asarray(opened(one.masks["truth"].image).convert("RGBA"))
    assert pixels[0, 50].tolist()[3] == pixels[45, 90].tolist()[3] == 0
    assert "#{:02x}{:02x}{:02x}".format(*pixels[15, 40][:3]) == class_colour(1)
    assert "#{:02x}{:02x}{:02x}".format(*pixels[35, 15][:3]) == class_colour(9)
    assert pixels[15, 40][3] == 255
    section = pictures([one], ["Background", "cell"])
    (shown,) = [block for block in section.blocks if isinstance(block, Pictures)]
    assert shown.legend == [("cell", class_colour(1)), ("class 9", class_colour(9))]


def test_the_number_of_a_class_is_its_colour_everywhere(kept: Kept):
    (one,) = read_pictures(kept({"truth": [[1, 1, 9, 9, 1], [1, 1, 9, 9, "new"]]}), ["a", "b"])
    (shown,) = [block for block in pictures([one], ["a", "b"]).blocks if isinstance(block, Pictures)]
    assert shown.legend == [("b", class_colour(1)), ("new", class_colour(2))]
    assert [mark.colour for mark in shown.pictures[0].views[0].marks] == [class_colour(1), class_colour(2)]


def test_names_stand_beside_boxes_where_there_is_room(kept: Kept):
    few = read_pictures(kept({"truth": [[1, 1, 9, 9, 0]] * 3}))
    many = read_pictures(kept({"truth": [[1, 1, 9, 9, 0]] * 20}))
    shown = [block for found in (few, many) for block in pictures(found).blocks if isinstance(block, Pictures)]
    assert [block.named for block in shown] == [True, False]


OUTSIDE = ["../secret.jpg", "/etc/hostname", "pictures/../../secret.jpg", "secret.jpg", "pictures", "pictures/gone.jpg",
           "pictures/link.jpg", "a\0b", "pictures/a.jpg\0", "x" * 5000, "pictures/pictures.json/a.jpg"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_is_read_but_those_of_the_runs_own_pictures(kept: Kept, tmp_path: Path, name: str):
    folder = kept({"file": name})
    for place in (tmp_path / "secret.jpg", folder / "secret.jpg"):
        Image.new("RGB", (8, 8)).save(place)
    (folder / "pictures" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(RunError, match=r"pictures\.json is damaged: picture 0 names .*, which is no file in pictures/"):
        read_pictures(folder)


def test_a_mask_is_read_from_nowhere_else_either(kept: Kept, tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    with pytest.raises(RunError, match="which is no file in pictures/"):
        read_pictures(kept({"truth": "../secret.png"}))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (3, "is a int, expected its file and what is in it"),
        ({"file": None}, "names no file"),
        ({"file": 5}, "names no file"),
        ({"size": [0, 5]}, "has the size"),
        ({"size": [5]}, "has the size"),
        ({"size": ["5", 5]}, "has the size"),
        ({"size": [float("nan"), 5]}, "has the size"),
        ({"size": [10**400, 5]}, "has the size"),
        ({"truth": {}}, "truth is a dict, expected a list of boxes"),
        ({"truth": [[1, 2, 3, 4]]}, r"expected \[x1, y1, x2, y2, label\]"),
        ({"truth": [[1, 2, 3, 4, True]]}, r"expected \[x1, y1, x2, y2, label\]"),
        ({"truth": [[1, 2, 3, float("inf"), 0]]}, r"expected \[x1, y1, x2, y2, label\]"),
        ({"truth": [None]}, r"expected \[x1, y1, x2, y2, label\]"),
        ({"student": [[1, 2, 3, 4, 0]]}, r"label, score\]"),
        ({"student": [[1, 2, 3, 4, 0, "x"]]}, r"label, score\]"),
        ({"student": [[1, 2, 3, 4, ["x"], 0.5]]}, r"label, score\]"),
        ({"truth": "pictures/a.jpg"}, "of the mode RGB, expected class numbers of 8 bits"),
        ({"truth": "pictures/a.jpg", "student": [[1, 2, 3, 4, 0, 0.5]]}, "names no file|of the mode"),
    ],
)
def test_a_damaged_entry_is_named(kept: Kept, entry: Any, sentence: str):
    with pytest.raises(RunError, match=rf"pictures\.json is damaged: picture 0.*({sentence})"):
        read_pictures(kept(entry))


@pytest.mark.parametrize(("content", "sentence"), [("{", "no valid JSON"), ("{}", "holds a dict, expected a list")])
def test_a_damaged_list_is_named(kept: Kept, content: str, sentence: str):
    folder = kept()
    (folder / "pictures" / "pictures.json").write_text(content)
    with pytest.raises(RunError, match=rf"pictures\.json is damaged: it .*{sentence}|{sentence}"):
        read_pictures(folder)


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", b"\xff\xd8\xff\xe0 cut"])
def test_a_file_that_is_no_picture_is_named(kept: Kept, content: bytes):
    folder = kept({})
    (folder / "pictures" / "a.jpg").write_bytes(content)
    with pytest.raises(RunError, match=r"pictures/a\.jpg is no JPEG or PNG that can be read"):
        read_pictures(folder)


def test_a_picture_that_would_fill_the_memory_is_not_opened(kept: Kept):
    folder = kept({})
    Image.new("1", (20_000, 20_000)).save(folder / "pictures" / "a.jpg", "PNG")
    with pytest.raises(RunError, match=r"too many to show|no JPEG or PNG that can be read"):
        read_pictures(folder)


def test_names_that_no_file_can_hold_are_mended(kept: Kept):
    folder = kept({"name": "half \ud800 \u202e\n" + "long" * 100, "truth": [[1, 1, 9, 9, "a\ud800\u202e"]]})
    (one,) = read_pictures(folder)
    one.name.encode("utf-8")
    assert len(one.name) == 200
    assert one.boxes["truth"][0].label == "a  "


def test_a_picture_is_embedded_once_and_its_boxes_drawn_over_it(tmp_path: Path):
    folder = write_task_run(tmp_path / "run", "detection")
    text = write_report([folder]).read_text(encoding="utf-8")
    ours = text[: text.index('<script type="application/json"')]
    assert ours.count("data:image/jpeg") == 3
    assert ours.count("<use href=") == 6
    assert ours.count("<rect ") == 3 * (2 + 2 + 1)
    assert ours.count('class="low"') == 3, "of a score below the slider's"
    assert f"<title>{HOSTILE}" not in ours
    assert len(ours) < 400_000


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    def show(task: str, width: int = 1280) -> Any:
        folder = write_task_run(tmp_path / task, task, control=False)
        context = browser.new_context(viewport={"width": width, "height": 900})
        opened = context.new_page()
        opened.problems = []
        opened.on("console", lambda message: opened.problems.append(message.text))
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.on("dialog", lambda dialog: (opened.problems.append("a dialog"), dialog.dismiss()))
        opened.goto(write_report([folder]).resolve().as_uri())
        opened.wait_for_selector("html[data-ready]")
        opened.locator("#pictures, #roc").first.scroll_into_view_if_needed()
        opened.wait_for_timeout(200)
        return opened

    return show


def test_the_slider_shows_less_sure_boxes_and_hides_sure_ones(page: Any):
    shown = page("detection")
    assert shown.inner_text("#pictures h3") == HOSTILE
    student = shown.locator("#pictures svg").nth(1).locator("rect")
    assert [box.is_visible() for box in student.all()] == [True, False]
    move = "([value]) => { const one = document.querySelector('#pictures [type=range]'); one.value = value; " \
           "one.dispatchEvent(new Event('input')); }"  # fmt: skip
    shown.evaluate(move, [0.2])
    assert [box.is_visible() for box in student.all()] == [True, True]
    shown.evaluate(move, [0.95])
    assert [box.is_visible() for box in student.all()] == [False, False]
    assert shown.inner_text("#pictures output") == "0.95"
    assert shown.locator("#pictures svg").nth(0).locator("rect").first.is_visible(), "what is there has no score"
    assert shown.locator("#pictures svg text").first.is_visible()
    shown.locator("#pictures [type=checkbox]").click()
    assert not shown.locator("#pictures svg text").first.is_visible()
    assert shown.problems == []


def test_every_view_shows_the_picture(page: Any):
    shown = page("detection")
    sizes = shown.evaluate(
        "[...document.querySelectorAll('#pictures image, #pictures use')].map((one) => one.getBBox().width)"
    )
    assert sizes == [640] * 9


def test_masks_fade_with_the_slider(page: Any):
    shown = page("segmentation")
    opacity = "getComputedStyle(document.querySelector('#pictures .mask')).opacity"
    assert shown.evaluate(opacity) == "0.55"
    shown.locator("#pictures [type=range]").focus()
    shown.keyboard.press("Home")
    assert shown.evaluate(opacity) == "0"
    assert shown.problems == []


@pytest.mark.parametrize("task", ["detection", "segmentation", "faces"])
def test_on_a_phone_nothing_scrolls_sideways(page: Any, task: str):
    shown = page(task, width=390)
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    assert shown.problems == []
