"""The page in headless Chromium: it asks for nothing, runs nothing of what it shows, and answers to clicks and keys."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill.report import write_report

SECONDS = 2.0  # of a processor, until the first plots are drawn


class Opened:
    """A page, with what it said and what it asked for."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.route("**/*", self._watch)
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector(".plot .main-svg")

    def _watch(self, route: Any) -> None:
        address = route.request.url
        if address.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.asked.append(address)
            route.abort()

    def look_everywhere(self) -> None:
        """Scroll through the page and open every tab, so that every plot is drawn."""
        for tab in self.page.locator('[role="tab"]').all():
            if tab.is_visible():
                tab.click()
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for y in range(0, height, 500):
            self.page.evaluate(f"scrollTo(0, {y})")
            self.page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def path(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([run], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Opened(context, path)
    context.close()


def test_nothing_is_complained_of_and_nothing_is_asked_for(opened: Opened):
    opened.look_everywhere()
    assert opened.page.locator(".plot .main-svg").count() > 10
    assert opened.said == []
    assert opened.asked == []


def test_the_policy_holds_against_what_would_run_or_ask(opened: Opened):
    """What an escape that was forgotten would let in is still stopped."""
    opened.page.evaluate(
        """() => {
          document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.ran = 1">');
          const script = document.createElement('script');
          script.textContent = 'window.ran = 2';
          document.body.append(script);
        }"""
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.ran") is None
    refused = opened.page.evaluate("fetch('https://example.org/').then(() => 'came', () => 'refused')")
    assert (refused, opened.asked) == ("refused", [])


def test_hostile_names_are_shown_and_not_run(opened: Opened, hostile: Sequence[str]):
    opened.look_everywhere()
    words = opened.page.inner_text("#confusions")
    assert hostile[0] in words
    assert hostile[1] in words
    ticks = opened.page.locator("#classes .ytick text, #map .legendtext").all_text_contents()
    assert any("<script>" in tick for tick in ticks), ticks
    assert opened.page.locator("#map .legendtext").first.text_content() == hostile[0]
    assert opened.page.locator("main img, .plot b, .plot script, .plot image").count() == 0
    assert not [line for line in opened.said if "dialog" in line]


def test_hovering_shows_a_hostile_name_as_text(opened: Opened, hostile: Sequence[str]):
    opened.look_everywhere()
    plot = opened.page.locator("#map .plot").first
    plot.scroll_into_view_if_needed()
    opened.page.evaluate("(plot) => Plotly.Fx.hover(plot, [{curveNumber: 0, pointNumber: 0}])", plot.element_handle())
    opened.page.wait_for_selector("#map .hoverlayer .hovertext")
    said = opened.page.locator("#map .hoverlayer").first.text_content()
    assert hostile[0] in said
    assert "the teacher: " in said


def test_a_click_on_the_legend_hides_a_series(opened: Opened):
    plot = opened.page.locator("#curves .plot").first
    plot.scroll_into_view_if_needed()
    opened.page.wait_for_selector("#curves .plot .legendtoggle")
    assert plot.locator(".scatterlayer .trace").count() == 3
    plot.locator(".legendtoggle").nth(1).click()
    opened.page.wait_for_function("() => document.querySelector('#curves .plot').data[1].visible === 'legendonly'")
    assert plot.locator(".scatterlayer .trace").count() == 2


def test_a_hidden_series_stays_hidden_when_the_theme_changes(opened: Opened):
    plot = opened.page.locator("#curves .plot").first
    plot.scroll_into_view_if_needed()
    plot.locator(".legendtoggle").nth(1).click()
    opened.page.wait_for_function("() => document.querySelector('#curves .plot').data[1].visible === 'legendonly'")
    colour = "() => document.querySelector('#curves .plot').data[0].line.color"
    before = opened.page.evaluate(colour)
    opened.page.click("#theme")  # light
    opened.page.click("#theme")  # dark
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert opened.page.evaluate(colour) != before
    assert plot.locator(".scatterlayer .trace").count() == 2


def test_tabs_answer_to_a_click_and_to_the_arrows(opened: Opened):
    tabs = opened.page.locator('#curves [role="tab"]')
    panels = opened.page.locator('#curves [role="tabpanel"]')
    assert [panel.is_visible() for panel in panels.all()] == [True, False, False, False]
    tabs.nth(1).click()
    assert [panel.is_visible() for panel in panels.all()] == [False, True, False, False]
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    opened.page.wait_for_selector("#curves [role='tabpanel']:nth-of-type(3) .main-svg")
    opened.page.keyboard.press("ArrowRight")
    assert panels.nth(2).is_visible()
    opened.page.keyboard.press("Home")
    assert panels.nth(0).is_visible()
    opened.page.keyboard.press("ArrowLeft")
    assert panels.nth(3).is_visible()
    assert opened.page.evaluate("document.activeElement.textContent") == "Learning rate"


def test_a_class_can_be_picked_on_both_maps(opened: Opened, hostile: Sequence[str]):
    opened.look_everywhere()
    opened.page.locator("#map select").first.select_option(label=hostile[2])
    chosen = opened.page.evaluate(
        "() => [...document.querySelectorAll('#map .plot')].map((p) => p.data.map((t) => t.selectedpoints.length))"
    )
    assert len(chosen) == 2
    assert chosen[0] == chosen[1]
    assert [count > 0 for count in chosen[0]] == [False, False, True, False, False, False]
    opened.page.locator("#map select").nth(1).select_option(value="")
    assert opened.page.evaluate(
        "document.querySelector('#map .plot').data.every((t) => t.selectedpoints === undefined)"
    )


@pytest.mark.parametrize("width", [390, 768])
def test_the_page_never_scrolls_sideways(browser: Any, path: Path, width: int):
    context = browser.new_context(viewport={"width": width, "height": 844})
    opened = Opened(context, path)
    opened.look_everywhere()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    context.close()


def test_paper_shows_every_tab(opened: Opened):
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.page.emulate_media(media="print")
    assert all(panel.is_visible() for panel in opened.page.locator('[role="tabpanel"]').all())
    assert not opened.page.locator("nav").is_visible()
    drawn = opened.page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")
    assert drawn
    opened.page.emulate_media(media="screen")
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator('#curves [role="tabpanel"]').nth(1).is_hidden()


def test_a_long_run_opens_in_time(browser: Any, tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", epochs=240, rows=16, images=2000, classes=[f"class {k}" for k in range(100)])
    path = write_report([folder])
    context = browser.new_context()
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # the page's own time, whatever else is running
    page.goto(path.resolve().as_uri())
    page.wait_for_selector(".plot .main-svg")
    spent = {row["name"]: row["value"] for row in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    assert 0 < spent["TaskDuration"] < SECONDS, spent


def test_several_runs_are_overlaid(browser: Any, tmp_path: Path, make_run: Callable[..., Path], run: Path):
    other = make_run(tmp_path / "<u>other</u>", seed=1, predictions=False)
    context = browser.new_context()
    opened = Opened(context, write_report([run, other], tmp_path / "both.html"))
    opened.look_everywhere()
    assert opened.page.locator("#curves .plot").first.locator(".scatterlayer .trace").count() == 2
    assert opened.page.locator("#curves .legendtext").nth(1).text_content().endswith("<u>other</u>")
    assert opened.said == []
    context.close()
