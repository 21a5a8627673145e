"""Every link of the built site leads somewhere: ``python docs/_site/check_links.py build/docs``.

Of each page: the files and the anchors that it links to are there, and nothing that it loads is anywhere else.
``--external`` also asks the web for each address that is linked to; without it no network is used.
"""

import argparse
import re
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

__all__ = ["Page", "broken_links", "dead_addresses", "pages_of"]

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_LOADED = {"next", "prev", "index", "search", "author", "copyright", "canonical"}  # of <link>: for reading only
FROM_CSS = re.compile(r"url\(\s*['\"]?(https?:)?//|@import\s+['\"](https?:)?//")


class Page(HTMLParser):
    """What a page can be entered at, links to, and loads.

    Example:
        >>> page = Page('<h2 id="a">A</h2><a href="b.html#c">b</a><script src="https://cdn.example/x.js"></script>')
        >>> page.anchors, page.links, page.loads
        ({'a'}, ['b.html#c'], ['https://cdn.example/x.js'])
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        address = found.get(LOADED.get(tag, "href"))
        if not address:
            return
        if tag in LOADED and found.get("rel") not in NOT_LOADED:
            self.loads.append(address)
        if tag in ("a", "link", "img", "script"):
            self.links.append(address)


def pages_of(site: Path) -> list[Path]:
    """All pages; the theme's own templates lie among its styles, and are none."""
    return [path for path in sorted(site.rglob("*.html")) if path.relative_to(site).parts[0] != "_static"]


def broken_links(site: Path) -> list[str]:
    """All that is wrong with the site's own links, as sentences."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in pages_of(site)}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {x}, which is elsewhere." for x in page.loads if urlsplit(x).scheme or x[:2] == "//"]
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_relative_to(site.resolve()) or not target.is_file():
                found.append(f"{name} links to {link}, and there is no such file.")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} links to {link}, and there is no such place in that page.")
    styles = [path for path in site.rglob("*.css") if FROM_CSS.search(path.read_text(encoding="utf-8"))]
    return found + [f"{path.relative_to(site)} loads something that is elsewhere." for path in styles]


def dead_addresses(site: Path) -> list[str]:
    """The web addresses that the site links to and that do not answer, each with the pages that link to it."""
    linked = defaultdict(list)
    for path in pages_of(site):
        for link in dict.fromkeys(Page(path.read_text(encoding="utf-8")).links):
            if urlsplit(link).scheme in ("http", "https"):
                linked[link.partition("#")[0]].append(path.relative_to(site).as_posix())
    found = []
    for address, names in sorted(linked.items()):
        try:
            with urlopen(Request(address, headers={"User-Agent": "Potstill's link check"}), timeout=20):
                pass
        except (URLError, OSError, ValueError) as error:
            found.append(f"{address} does not answer ({error}); linked to by {', '.join(names)}.")
    return found


def main() -> int:
    """Print what is broken; 1 where something is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--external", action="store_true", help="also ask the web")
    options = parser.parse_args()
    site = options.site.resolve()
    pages = len(pages_of(site))
    if not pages:
        print(f"There is no page in {options.site}; build the site first: make docs.", file=sys.stderr)
        return 1
    found = broken_links(site) + (dead_addresses(site) if options.external else [])
    print("\n".join([*found, f"{pages} pages, {len(found)} broken links."]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
