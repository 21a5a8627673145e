"""The site of the documents: complete, and built without a warning, a broken link or a request to elsewhere."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from tests.docs.documents import ROOT, TEXTS

SITE = ROOT / "docs" / "_site"
ROOMS = ["potstill"] + [
    f"potstill.{file.parent.name}"
    for file in sorted((ROOT / "src/potstill").glob("*/__init__.py"))
    if "__all__" in file.read_text(encoding="utf-8") and file.parent.name != "cli"
]
SHOWN = re.compile(r"^\.\. (?:auto\w+|py:data):: (potstill[\w.]*)", flags=re.MULTILINE)


@pytest.fixture
def site(monkeypatch):
    """A module of the site's own code by name."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return lambda name: import_module(f"_site.{name}")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_place_in_the_api(room: str):
    shown = {name for page in (ROOT / "docs/api").glob("*.rst") for name in SHOWN.findall(page.read_text("utf-8"))}
    package = import_module(room)
    homes = getattr(package, "_HOME_OF", {})
    missing = []
    for name in package.__all__:
        value = getattr(package, name)
        home = getattr(value, "__module__", "")
        home = home if home.startswith("potstill.") else homes.get(name, "")
        known = home in shown or f"{home}.{name}" in shown
        if not known and not any(place.endswith(f".{name}") for place in shown) and name != "__version__":
            missing.append(name)
    assert not missing


def test_every_page_has_its_place_in_the_navigation(site):
    listed = {page for pages in site("navigation").BELOW.values() for part in pages.values() for page in part}
    pages = {name.removeprefix("docs/").removesuffix(".md") for name in TEXTS if name.startswith("docs/")}
    assert not {page for page in pages if not page.startswith("methods/")} - listed - {"index"}


def test_the_table_for_choosing_is_what_the_methods_say_of_themselves(site):
    table = site("method_table")
    page = table.PAGE.read_text(encoding="utf-8")
    written = table.page_with(page, table.table())
    assert written == page, "python docs/_site/method_table.py writes it anew"
    assert page.count("](methods/") > 30


def test_the_guide_to_reports_explains_every_section_that_there_is():
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "src/potstill/report").glob("*.py"))
    titles = set(re.findall(r'Section\(\s*"\w+", "([^"]+)"', sources)) | {"Map of the embeddings"}
    page = TEXTS["docs/reading-a-report.md"]
    explained = set(re.findall(r"^## (.*)", page, flags=re.MULTILINE)) | set(re.findall(r"\*\*([^*]+)\*\*", page))
    assert len(titles) >= 8
    assert not titles - explained


def broken(site, folder: Path, **pages: str) -> list[str]:
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return site("check_links").broken_links(folder)


def test_a_broken_link_is_found(site, tmp_path):
    found = broken(
        site,
        tmp_path,
        a='<h1 id="top">A</h1><a href="b.html#there">b</a><a href="#top">up</a><a href="https://example.org">web</a>',
        b='<h2 id="there">B</h2><a href="a.html#nowhere">a</a><a href="c.html">c</a><a href="../../etc/passwd">up</a>',
    )
    assert found == [
        "b.html links to a.html#nowhere, and there is no such place in that page.",
        "b.html links to c.html, and there is no such file.",
        "b.html links to ../../etc/passwd, and there is no such file.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/mathjax.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/a.css">',
        '<img src="http://example.org/a.png">',
    ],
)
def test_a_page_that_loads_something_from_elsewhere_is_found(text: str, site, tmp_path):
    (message,) = broken(site, tmp_path, a=text)
    assert message.endswith("which is elsewhere.")


def test_a_style_that_loads_a_font_from_elsewhere_is_found(site, tmp_path):
    (tmp_path / "a.css").write_text("@import url('https://fonts.example.org/a.css');", encoding="utf-8")
    assert broken(site, tmp_path) == ["a.css loads something that is elsewhere."]


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_no_link_of_it_is_broken(tmp_path):
    """What `make docs` does."""
    pytest.importorskip("sphinx", reason="the generator comes with the extra `docs`")
    build = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", "-d", tmp_path / "read"]
    done = subprocess.run([*build, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check = [sys.executable, SITE / "check_links.py", tmp_path / "site"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
