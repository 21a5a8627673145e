"""The small package beside a student's weights: the code of a network that neither timm nor torchvision has."""

import inspect
from pathlib import Path

from potstill.files import write_whole
from potstill.networks.detection import build as detection
from potstill.networks.origins import timm_name
from potstill.networks.segmentation import build as segmentation
from potstill.networks.zoo import zoo_file

__all__ = ["PACKAGE", "package_files", "write_package"]

PACKAGE = "student_network"  # the folder, beside the weights, of a network that neither timm nor torchvision has

PACKAGE_INIT = '''"""The network of the weights beside this folder{what}

Copied from Potstill, under the Apache License 2.0. It needs {needs}, and no Potstill.
"""

{imports}

__all__ = ["{name}"]
'''

# What the package of a head on a backbone says of its network.
SAYS = {
    "fasterrcnn": """; its name is in student.json.

It takes a list of RGB images (3, H, W) in 0..1, of any size. The labels that it returns count from 1, as torchvision's
do: label n is the n-th class in student.json.""",
    "retinanet": """; its name is in student.json.

It takes a list of RGB images (3, H, W) in 0..1, of any size. The labels that it returns count from 0: label n is
classes[n] in student.json.""",
    "fcn": """; its name is in student.json.

It takes RGB images (B, 3, H, W) in 0..1, normalised by the mean and std in student.json, and returns {"out": logits of
each pixel (B, C, H, W)}.""",
}
SAYS |= {"fcos": SAYS["retinanet"], "deeplabv3": SAYS["fcn"], "lraspp": SAYS["fcn"]}


def package_files(model: str) -> dict[str, bytes]:
    """The files of the package that a network needs, by name; none where timm or torchvision has the network."""
    origin, _, name = model.rpartition("/")
    if ":" in model or origin == "torchvision":
        return {}
    for room, build in (("detection", detection), ("segmentation", segmentation)):
        if origin in build.KINDS:
            source = Path(inspect.getfile(build.KINDS[origin]))
            init = PACKAGE_INIT.format(
                what=SAYS[origin],
                needs="torch, torchvision and timm",
                imports=f"from .{room} import {origin}",
                name=origin,
            )
            return {f"{room}.py": source.read_bytes(), "__init__.py": init.encode()}
    family = zoo_file(timm_name(origin, name))
    if family is None:
        return {}
    init = PACKAGE_INIT.format(
        what=", registered with timm when this package is imported.", needs="torch and timm",
        imports=f"from . import {family.stem}", name=family.stem,
    )  # fmt: skip
    sources = {source.name: source.read_bytes() for source in (family.with_name("base.py"), family)}
    return {**sources, "__init__.py": init.encode()}


def write_package(folder: Path, files: dict[str, bytes]) -> None:
    """Write the package's files, the ``__init__.py`` last."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
