"""The tables and figures of the documents are those of the code."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import yaml
from pydantic import BaseModel
from tests.docs.documents import TEXTS, prose, rows

from potstill.config import Recipe, TeacherConfig
from potstill.methods import hyper_parameters, methods
from potstill.networks.cifar import CIFAR_MODELS
from potstill.networks.faces import FACE_MODELS
from potstill.projectors import ProjectorEnsemble


def built(name: str, side: int, num_classes: int) -> tuple[Any, str]:
    """A network without memory for its weights, and its taps as the table writes them."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=num_classes).eval()
        ends = network.forward_intermediates(torch.zeros(2, 3, side, side), intermediates_only=True)
    return network, ", ".join(f"{end.shape[1]}@{end.shape[2]}" for end in ends)


def test_the_tables_of_the_zoo_are_what_the_networks_are():
    found = {}
    for name, known in CIFAR_MODELS.items():
        network, taps = built(known, 32, num_classes=100)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        found[f"`{name}`"] = [f"`{known}`", f"{parameters:,}", taps, str(network.num_features)]
    for name in FACE_MODELS:
        if name != "face_backbone":  # of any backbone
            network, taps = built(name, 112, num_classes=0)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            found[f"`faces/{name}`"] = [f"{parameters:,}", taps, str(network.num_features)]
    table = {first: rest for first, *rest in rows(TEXTS["docs/zoo.md"]) if first.startswith("`")}
    assert table == found
    assert f"the {len(CIFAR_MODELS)} CIFAR networks" in TEXTS["README.md"]


def test_the_counts_of_projectors_parameters_are_right():
    found = re.findall(r"^\| (\d+) -> (\d+) \|[^|]*\| ([\d,]+) \|", TEXTS["docs/methods/pefd.md"], flags=re.MULTILINE)
    counts = [
        sum(parameter.numel() for parameter in ProjectorEnsemble(int(d), int(m)).parameters()) for d, m, _ in found
    ]
    assert [int(count.replace(",", "")) for _, _, count in found] == counts
    assert len(counts) == 4


def values_of(cell: str) -> list[Any]:
    """The values in a table's cell: ``0.9, false`` is ``[0.9, False]``."""
    values = yaml.safe_load(f"[{cell.replace('`', '')}]")
    numbers = [float(value) if re.fullmatch(r"\de-\d", str(value)) else value for value in values]
    return [None if value == "none" else value for value in numbers]


@pytest.mark.parametrize("name", [name for name, cls in methods().items() if cls.__module__.startswith("potstill.")])
def test_a_method_has_a_card_with_all_it_takes(name: str):
    table = {row[0].strip("`"): row[1] for row in rows(TEXTS[f"docs/methods/{name}.md"]) if row[0].startswith("`")}
    assert {key: values_of(cell)[0] for key, cell in table.items()} == hyper_parameters(name)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the recipe with its default."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = {"teacher": TeacherConfig}.get(name, type(default))
        if name == "taps":
            yield from ((f"{prefix}taps.{key}", None) for key in ("classifier", "embedding", "maps"))
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, default


def test_every_key_of_the_recipe_is_in_the_documents_and_no_other():
    known = dict(keys(Recipe))
    spans = set(re.findall(r"`([a-z][\w.]*)(?:=[^`]*)?`", "".join(map(prose, TEXTS.values()))))
    as_the_student = {key for key in known if key.startswith("teacher.") and key.replace("teacher", "student") in known}
    assert not set(known) - spans - as_the_student
    sections = {key.split(".")[0] for key in known if "." in key}
    others = {"student.json", "student.safetensors", "student.taps", "teacher.taps"}  # files; whole sections
    dotted = {span for span in spans if span.split(".")[0] in sections and "." in span}
    assert (
        not {span for span in dotted if not span.startswith(("student.args.", "teacher.args."))} - set(known) - others
    )


def test_the_defaults_in_the_table_are_the_recipes():
    known, checked = dict(keys(Recipe)), 0
    for row in rows(TEXTS["docs/training.md"]):
        names = re.findall(r"`([\w.]+)`", row[0])
        if not names or not set(names) <= set(known) or names[0] in ("objective", "run"):
            continue
        defaults = [list(known[name]) if isinstance(known[name], tuple) else known[name] for name in names]
        assert values_of(row[1]) == defaults, row
        checked += len(names)
    assert checked >= 25
