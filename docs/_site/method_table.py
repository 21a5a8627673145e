"""The table of ``docs/choosing.md``: read off the methods themselves, and off what was measured of them.

``python docs/_site/method_table.py`` writes it into the page; a test compares the two.
"""

import re
from functools import cache
from pathlib import Path

from potstill.errors import NetworkError
from potstill.methods import build_method, methods
from potstill.methods.base import Method, Needs, Setting
from potstill.networks.build import build_network
from potstill.networks.tap import Tapped
from potstill.procedures.store_key import VECTORS

__all__ = ["PAGE", "page_with", "table"]

DOCS = Path(__file__).resolve().parents[1]
PAGE = DOCS / "choosing.md"
PLACE = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- end -->)", flags=re.DOTALL)
COST = re.compile(r"^(\w+) +(\d+\.\d+) +\d+\.\d+ \.\. \d+\.\d+", flags=re.MULTILINE)
HEAD = ("method", "reads of the teacher", "labels", "widths", "trains a helper", "from a store", "step / KD")
DEPTHS = ("nothing", "logits", "class means", "embedding", "maps", "preacts", "blocks")


def table() -> str:
    """The whole table, a row a method, by what a method reads of the teacher."""
    measured = {"kd": "1", **dict(COST.findall((DOCS / "performance.md").read_text(encoding="utf-8")))}
    known = {name: cls for name, cls in methods().items() if cls.__module__.startswith("potstill.")}
    names = sorted(known, key=lambda name: (_depth(known[name].needs), name))
    lines = [HEAD, ("---",) * len(HEAD), *(_row(name, known[name], measured) for name in names)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page_with(page: str, rows: str) -> str:
    """The page with these rows in the table's place."""
    return PLACE.sub(lambda _: f"\n{rows}\n", page)


def _row(name: str, cls: type[Method], measured: dict[str, str]) -> tuple[str, ...]:
    other, same = _built(name, "resnet8x4"), _built(name, "resnet14")
    method = other or same
    assert method is not None, f"{name} can be built between no two networks"
    return (
        f"[`{name}`](methods/{name}.md)",
        _read(cls.needs),
        "yes" if cls.needs.labels else "",
        "any" if other else "equal",
        "yes" if any(True for _ in method.parameters()) else "",
        _stored(cls.needs),
        f"{float(measured[name]):.2f}" if name in measured else "",
    )


def _built(name: str, teacher: str) -> Method | None:
    """The method for a resnet8 that learns from another network; None where it refuses the pair."""
    student, network = _network("resnet8"), _network(teacher)
    setting = Setting(
        student.spec, network.spec, samples=100, batch_size=8, peers=1,
        classifier=network.classifier(), norms=network.norms(),
        identity_scale=64.0,  # as of a network for faces, without which margins could not be built
    )  # fmt: skip
    try:
        return build_method(name, setting)
    except NetworkError:
        return None


@cache
def _network(model: str) -> Tapped:
    network = build_network(f"cifar/{model}", classes=10, input_size=(3, 32, 32))
    network.open(preacts=True, blocks=True)
    return network


def _read(needs: Needs) -> str:
    words = {"peers": "other teachers' logits", "preacts": "maps before their activation", "blocks": "blocks' maps"}
    fields = [words.get(field, field) for field in sorted(needs.teacher)]
    fields += ["class means"] if needs.class_means else []
    fields += ["student's maps"] if needs.teacher == {"embedding"} and "maps" in needs.student else []
    return ", ".join(fields) or ("nothing; its peers' logits" if "peers" in needs.student else "nothing")


def _depth(needs: Needs) -> int:
    """Where a row stands: after all that read less."""
    read = [*needs.teacher, *(["class means"] if needs.class_means else [])]
    return max((DEPTHS.index(field) for field in read if field in DEPTHS), default=0)


def _stored(needs: Needs) -> str:
    if not needs.taught:
        return ""
    return "yes" if needs.teacher <= set(VECTORS) else "with `store.keep`"


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
