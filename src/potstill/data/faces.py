"""The data of face recognition: people to learn from, and other people by whom networks are judged."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.data.alignment import AlignedSource, align, read_landmarks
from potstill.data.decode import decode
from potstill.data.folder import FolderSource
from potstill.data.ijb import read_protocols
from potstill.data.pairs import PairSet, read_bin, read_pairs
from potstill.data.protocol import Protocol
from potstill.data.records import FACES, RecordSource
from potstill.data.source import Source, Split, Subset, fingerprint
from potstill.errors import DataError

__all__ = ["FaceTest", "People", "ProtocolFaces", "open_faces"]

log = logging.getLogger(__name__)

LANDMARKS = "landmarks.csv"
TEMPLATE = "arcface-112"
_MOST_COMPARED = 6000  # images that are all compared with each other where no protocol says which


@dataclass(frozen=True, slots=True, eq=False)
class FaceTest:
    """What networks are judged by.

    Attributes:
        images: every image once.
        found: ``(N,)`` bool: where there is a face.
        pairs: a set of pairs; None where there are protocols.
        protocols: one, or several splits of the same images.
        alignment: the template that the images were aligned to here; None where they are taken as they are.
    """

    images: Source
    found: np.ndarray
    pairs: PairSet | None = None
    protocols: tuple[Protocol, ...] = ()
    alignment: str | None = None


class People(Subset):
    """The images of some of a source's people, numbered anew, in the order of their names.

    Args:
        source: with identities.
        people: numbers of those who are taken.
    """

    def __init__(self, source: Source, people: Sequence[int]) -> None:
        if source.labels is None:
            raise DataError(f"{source.name} has no identities; put each person's images into a folder.")
        numbers = np.full(len(source.classes), -1, dtype=np.int64)
        numbers[list(people)] = np.arange(len(people))
        super().__init__(source, np.flatnonzero(numbers[source.labels] >= 0))
        self.classes = tuple(source.classes[number] for number in people)
        self.labels = numbers[source.labels[self.indices]]


class ProtocolFaces(Source):
    """The images of a protocol, aligned by its landmarks where it has them.

    Args:
        protocol: whose images these are.
        template: to align to.
    """

    def __init__(self, protocol: Protocol, template: str = TEMPLATE) -> None:
        self.protocol, self.template = protocol, template
        self.name, self.statistics = protocol.name, FACES
        side = int(template.rpartition("-")[2])
        self.fixed_size = None if protocol.landmarks is None else (side, side)

    @property
    def identity(self) -> str:
        """A hash of the images' paths, of the landmarks and of the template; the files are not read for it."""
        landmarks = self.protocol.landmarks
        return fingerprint(self.protocol.images, "none" if landmarks is None else landmarks, self.template)

    def __len__(self) -> int:
        return len(self.protocol.images)

    def image(self, index: int) -> np.ndarray:
        """One face, aligned; black where the protocol says that there is none."""
        landmarks = self.protocol.landmarks
        if landmarks is None:
            return decode(self.protocol.path(index), self.describe(index))
        if not np.isfinite(landmarks[index]).all():
            return np.zeros((*(self.fixed_size or (112, 112)), 3), np.uint8)
        return align(decode(self.protocol.path(index), self.describe(index)), landmarks[index], self.template)

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self.protocol.root / self.protocol.images[index])


def open_faces(
    path: str | Path, protocol: str | Path | None = None, *, source: str = "auto", val_fraction: float | None = None,
    seed: int = 0,
) -> Split:  # fmt: skip
    """Open people to learn from, and what networks are judged by.

    Args:
        path: a folder with one sub-folder a person (with ``landmarks.csv`` its faces are aligned), or insightface's
            records (``train.rec``).
        protocol: a ``.bin`` file of pairs, LFW's ``pairs.txt`` in a folder of people, or the folder of a protocol in
            the layout of IJB-A, or of insightface's IJB-B and IJB-C. None keeps a part of the people for it, whose
            images are all compared with each other.
        source: ``"folder"``, ``"records"`` or ``"auto"``, which looks.
        val_fraction: the part of the people that is kept where there is no protocol; None is 0.2; 0 keeps none.
        seed: of that choice.

    Raises:
        DataError: what the readers find wrong, and too few people to keep some.
    """
    people = _people(Path(path), source)
    if protocol is not None:
        test = _test(Path(protocol))
        notes = [f"Judged by {protocol}: {len(test.images):,} images."]
        if val_fraction is not None:
            notes.append(f"val_fraction={val_fraction} is for data without a protocol and was not used.")
        if (ours := getattr(people, "template", None)) != test.alignment:
            log.warning(
                "The images to learn from are %s and those to judge by are %s: a network is judged wrongly by faces "
                "that are placed in another way. Align both by landmarks, or neither.",
                _aligned(ours),
                _aligned(test.alignment),
            )
        return Split(people, test.images, " ".join(notes), test)
    fraction = 0.2 if val_fraction is None else val_fraction
    kept = round(fraction * len(people.classes))
    if not kept:
        return Split(people, None, "Nobody is kept to judge by (val_fraction): all people are learned from.")
    if kept < 2 or len(people.classes) - kept < 2:
        raise DataError(
            f"{people.name} has {len(people.classes)} people, of whom {kept} would be kept to judge by; two are needed "
            "on each side. Give data.protocol, or another data.val_fraction."
        )
    order = np.random.default_rng(seed).permutation(len(people.classes))
    others = People(people, sorted(order[:kept].tolist()))
    if len(others) > _MOST_COMPARED:
        raise DataError(
            f"The {kept} people that would be kept to judge by have {len(others):,} images, too many to compare all "
            f"with each other (at most {_MOST_COMPARED:,}). Give data.protocol, or a smaller data.val_fraction."
        )
    first, second = np.triu_indices(len(others), 1)
    labels = np.asarray(others.labels)
    pairs = PairSet("the people kept apart", others, first, second, labels[first] == labels[second], folds=1)
    test = FaceTest(others, np.ones(len(others), bool), pairs, alignment=getattr(people, "template", None))
    note = (
        f"The data bring no protocol: {kept} of {len(people.classes)} people are kept to judge by, chosen with seed "
        f"{seed}; their {len(others):,} images are all compared with each other."
    )
    return Split(People(people, sorted(order[kept:].tolist())), others, note, test)


def _people(path: Path, source: str) -> Source:
    records = path.suffix == ".rec" or (path / "train.rec").is_file()
    if source == "records" or (source == "auto" and records):
        return RecordSource(path)
    if source not in ("auto", "folder"):
        raise DataError(f"data.source={source} is no data for task=faces; take folder or records.")
    folder = FolderSource(path, statistics=FACES)
    if folder.labels is None:
        raise DataError(f"{path} has images, but no folder for each person. Put each person's into one.")
    if (path / LANDMARKS).is_file():
        return AlignedSource(folder, read_landmarks(path / LANDMARKS), TEMPLATE)
    return folder


def _test(path: Path) -> FaceTest:
    if path.suffix == ".bin":
        pairs = read_bin(path)
    elif path.suffix == ".txt":
        pairs = read_pairs(path, path.parent)
    else:
        protocols = read_protocols(path)
        images = ProtocolFaces(protocols[0])
        aligned = None if protocols[0].landmarks is None else TEMPLATE
        return FaceTest(images, protocols[0].found, None, protocols, aligned)
    return FaceTest(pairs.images, np.ones(len(pairs.images), bool), pairs)


def _aligned(template: str | None) -> str:
    return f"aligned to {template}" if template else "taken as they are"
