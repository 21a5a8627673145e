"""The command that makes a face protocol of a folder of people."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.arguments import Json, as_override
from potstill.cli.console import open_console
from potstill.cli.output import print_json
from potstill.errors import DataError, RunError

__all__ = ["protocol"]

_TRAIN = "train"


def protocol(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images, a sub-folder for each person.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.", show_default=False)],
    people: Annotated[
        int | None,
        typer.Option(
            "--people", help="How many are kept to judge by; a fifth by default, three at least.", show_default=False
        ),
    ] = None,
    gallery_images: Annotated[
        int, typer.Option("--gallery-images", help="Images of a person's first template.")
    ] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Another one chooses others.")] = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Keep some people of a folder to judge face networks by: their templates, all pairs of them, two galleries.

    OUT becomes a protocol in the layout of IJB-C (data.protocol=OUT), and OUT/train has the images of all other people,
    to learn from. Images are copied; the folder itself stays as it is.
    """
    learned, judged = _make(folder, out, people, gallery_images, seed)
    train = out / _TRAIN
    if json:
        print_json({"folder": str(out), "train": str(train), "learned": len(learned), "judged": list(judged)})
        return
    console = open_console()
    console.print(
        f"{out} judges by {len(judged)} of the {len(learned) + len(judged)} people of {folder}, chosen with seed "
        f"{seed}; {train} has the images of the other {len(learned)}.",
        soft_wrap=True,
    )
    given = f"{as_override('data.path', str(train))} {as_override('data.protocol', str(out))}"
    console.print(f"Next: potstill train task=faces {given} student.model=mobilefacenet", soft_wrap=True)


def _make(
    folder: Path, out: Path, people: int | None, gallery_images: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write all of it or nothing; who is learned from and who is judged by.

    Raises:
        DataError: a folder that no protocol can be made of, or a place where none can be.
        RunError: nothing can be written there.
    """
    from potstill.data.face_protocol import generate_protocol, split_people
    from potstill.data.faces import LANDMARKS
    from potstill.data.folder import FolderSource

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Give a folder that is not there yet.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{out} lies in {folder}, where it would be taken for a person. Give a folder outside.")
    if (folder / LANDMARKS).is_file():
        raise DataError(
            f"{folder} has {LANDMARKS}, and a protocol holds faces as they are: those learned from would be aligned, "
            "and those judged by would not. Give a folder of images that are cut out already."
        )
    source = FolderSource(folder)
    kept = max(3, round(0.2 * len(source.classes))) if people is None else people
    learned, judged = split_people(folder, kept, seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            made = generate_protocol(
                folder, Path(scratch) / "made", people=judged, seed=seed, gallery_images=gallery_images
            )
            labels = [] if source.labels is None else source.labels.tolist()
            for index, label in enumerate(labels):
                if source.classes[label] not in judged:
                    file = source.encoded(index)
                    copy = made / _TRAIN / file.relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
            made.replace(out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}.") from error
    return learned, judged
