"""Makes a face protocol over a folder of people, in the layout of IJB-C, for sets that have none."""

import hashlib
import shutil
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from potstill.data.folder import FolderSource
from potstill.errors import DataError, nearest
from potstill.files import write_whole

__all__ = ["generate_protocol", "split_people"]

_PROBE_SIZES = (1, 2)  # images of a person's probes, in turn: single ones and pairs
_HEADER = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"


def split_people(folder: Path, test: int, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The people to train on and those to test on, disjoint, each in the order of their names.

    Who is in the test is a function of the seed and of the names: the order of a hash of both.

    Args:
        folder: one sub-folder of images a person.
        test: how many are kept for the test.
        seed: another one gives other people.

    Raises:
        DataError: more asked for than there are, or all of them; and as :class:`~potstill.data.folder.FolderSource`.
    """
    people = FolderSource(folder).classes
    if not 0 < test < len(people):
        raise DataError(f"{folder} has {len(people)} people; {test} for the test leaves none on one side.")
    chosen = set(_ordered(people, seed)[:test])
    return tuple(name for name in people if name not in chosen), tuple(name for name in people if name in chosen)


def generate_protocol(
    folder: Path,
    out: Path,
    *,
    people: Sequence[str] | None = None,
    seed: int = 0,
    gallery_images: int = 3,
    name: str = "faces",
) -> Path:
    """Write a protocol over a folder of people: templates, all pairs of them, two galleries, and probes.

    Each person's images are put in an order that depends on the seed and their names. The first ``gallery_images`` of
    them are one template; the rest are templates of one and of two images in turn; no image is in two templates. A
    third of the people is in gallery G1, a third in G2, and the rest in neither: their templates are all probes, for
    which a search should find nobody. Of templates with three images or more, the first two are one media, as frames
    of a video are. Every template is compared with every other, once; memory and file grow with their square.

    Args:
        folder: one sub-folder of images a person.
        out: a folder that does not exist or is empty. The images are copied to ``loose_crop`` in it.
        people: who is tested; everybody by default. Give those that no network was trained on
            (:func:`split_people`).
        seed: another one gives other templates and galleries.
        gallery_images: how many images the first template of a person has.
        name: what the files' names begin with.

    Returns:
        ``out``, for :func:`~potstill.data.ijb.read_ijb`.

    Raises:
        DataError: fewer than three people, a person who is not there, or who has too few images; ``out`` not empty.
    """
    source = FolderSource(folder)
    chosen = _chosen(source, folder, people)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Give a folder that is not there yet.")
    images: list[str] = []  # rows of meta/*_face_tid_mid.txt
    sets: dict[str, list[str]] = {"gallery_G1": [], "gallery_G2": [], "probe_mixed": []}
    owners: list[int] = []  # the person of each template
    (out / "loose_crop").mkdir(parents=True)
    (out / "meta").mkdir()
    for rank, person in enumerate(_ordered(chosen, seed)):
        home = ("gallery_G1", "gallery_G2", "probe_mixed")[rank % 3]
        subject = source.classes.index(person)
        files = {source.encoded(int(i)) for i in np.flatnonzero(_labels(source) == subject)}
        ordered = _ordered([file.relative_to(folder).as_posix() for file in files], seed)
        if gallery_images < 1 or len(ordered) <= gallery_images:
            raise DataError(
                f"{folder / person} has {len(ordered)} images; a template of {gallery_images} and one more are needed."
            )
        for number, template in enumerate(_templates(ordered, gallery_images)):
            owners.append(subject)
            for place, file in enumerate(template):
                copy = f"{len(images) + 1}{Path(file).suffix.lower()}"
                shutil.copyfile(folder / file, out / "loose_crop" / copy)
                media = len(images) if place == 1 and len(template) > 2 else len(images) + 1
                images.append(f"{copy} {len(owners)} {media}\n")
                part = home if number == 0 else "probe_mixed"
                sets[part].append(f"{len(owners)},{subject},loose_crop/{copy}\n")
    write_whole(out / "meta" / f"{name}_face_tid_mid.txt", "".join(images))
    write_whole(out / "meta" / f"{name}_template_pair_label.txt", _pairs(np.array(owners)))
    for part, rows in sets.items():
        write_whole(out / "meta" / f"{name}_1N_{part}.csv", _HEADER + "".join(rows))
    return out


def _labels(source: FolderSource) -> np.ndarray:
    if source.labels is None:
        raise DataError(f"{source.path} has images, but no folder for each person. Put each person's into one.")
    return source.labels


def _chosen(source: FolderSource, folder: Path, people: Sequence[str] | None) -> list[str]:
    """Who is tested, each once and all of them there."""
    _labels(source)
    chosen = list(source.classes if people is None else people)
    for person in chosen:
        if person not in source.classes:
            raise DataError(f"{folder} has no person {person!r}.{nearest(person, source.classes)}")
    if len(set(chosen)) < max(3, len(chosen)):
        raise DataError(
            f"{len(chosen)} people of whom {len(set(chosen))} are distinct: at least three are needed, each once, for "
            "two galleries and somebody in neither."
        )
    return chosen


def _ordered(names: Sequence[str], seed: int) -> list[str]:
    """Names in an order that looks random and depends on the seed and on nothing else."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def _templates(files: Sequence[str], first: int) -> list[Sequence[str]]:
    """Files cut into templates: one of ``first``, then ones of the sizes of probes in turn."""
    parts, start = [files[:first]], first
    for size in cycle(_PROBE_SIZES):
        if start >= len(files):
            return parts
        parts.append(files[start : start + size])
        start += size
    return parts


def _pairs(owners: np.ndarray) -> str:
    """A line for each two templates: their ids, and 1 where they are of one person."""
    first, second = np.triu_indices(len(owners), 1)
    same = (owners[first] == owners[second]).astype(int)
    return "".join(f"{a + 1} {b + 1} {label}\n" for a, b, label in zip(first, second, same, strict=True))
