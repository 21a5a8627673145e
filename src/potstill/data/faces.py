"""The data of face recognition: people to learn from, and other people by whom networks are judged."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from potstill.data.alignment import AlignedSource, align, read_landmarks
from potstill.data.decode import decode
from potstill.data.folder import FolderSource, find_parts
from potstill.data.ijb import read_protocols
from potstill.data.pairs import PairSet, read_bin, read_pairs
from potstill.data.protocol import Protocol
from potstill.data.records import FACES, RecordSource
from potstill.data.source import Source, Split, Subset, fingerprint, subset
from potstill.errors import DataError

__all__ = ["FaceTest", "People", "ProtocolFaces", "open_faces", "open_test", "otherwise_aligned"]

log = logging.getLogger(__name__)

LANDMARKS = "landmarks.csv"
TEMPLATE = "arcface-112"
_MOST_COMPARED = 6000  # images that are all compared with each other where no protocol says which


@dataclass(frozen=True, slots=True, eq=False)
class FaceTest:
    """What networks are judged by, and how the faces lie in the images.

    Attributes:
        images: every image once; None where nobody is kept to judge by.
        found: ``(N,)`` bool: where there is a face.
        pairs: a set of pairs; None where there are protocols.
        protocols: one, or several splits of the same images.
        alignment: the template that the images were aligned to here; None where they are taken as they are.
        learned: the same of the images to learn from.
    """

    images: Source | None
    found: np.ndarray
    pairs: PairSet | None = None
    protocols: tuple[Protocol, ...] = ()
    alignment: str | None = None
    learned: str | None = None

    @property
    def impostors(self) -> int | None:
        """Comparisons of two people, in the split that has the fewest; None where nothing is compared one to one."""
        compared = [self.pairs] if self.pairs is not None else [protocol.pairs for protocol in self.protocols]
        return min((int((~one.same).sum()) for one in compared if one is not None), default=None)

    @property
    def galleries(self) -> list[tuple[int, int]]:
        """Of each gallery how many people are in it, and how many probes are of somebody who is not."""
        found = []
        for protocol in self.protocols:
            probed = protocol.subject_of[protocol.probes]
            for numbers in protocol.galleries.values():
                people = np.unique(protocol.subject_of[numbers])
                found.append((len(people), int((~np.isin(probed, people)).sum())))
        return found


class People(Subset):
    """The images of some of a source's people, numbered anew, in the order of their names.

    Args:
        source: with identities.
        people: numbers of those who are taken.

    Attributes:
        template: that the images are aligned to; None where they are taken as they are.
    """

    def __init__(self, source: Source, people: Sequence[int]) -> None:
        if source.labels is None:
            raise DataError(f"{source.name} has no identities; put each person's images into a folder.")
        numbers = np.full(len(source.classes), -1, dtype=np.int64)
        numbers[list(people)] = np.arange(len(people))
        super().__init__(source, np.flatnonzero(numbers[source.labels] >= 0))
        self.classes = tuple(source.classes[number] for number in people)
        self.labels = numbers[source.labels[self.indices]]
        self.template = _template(source)


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
    """Open people to learn from, and what networks are judged by; ``Split.test`` is a :class:`FaceTest`.

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
    learned = _template(people)
    if protocol is not None:
        test, note = open_test(path, protocol)
        if val_fraction is not None:
            note += f" val_fraction={val_fraction} is for data without a protocol and was not used."
        if said := otherwise_aligned(learned, test.alignment):
            log.warning(said)
        return Split(people, test.images, note, replace(test, learned=learned))
    if val_fraction == 0:
        nobody = FaceTest(None, np.zeros(0, bool), learned=learned)
        return Split(people, None, "Nobody is kept to judge by (val_fraction): all people are learned from.", nobody)
    kept = round((0.2 if val_fraction is None else val_fraction) * len(people.classes))
    if kept < 2 or len(people.classes) - kept < 2:
        raise DataError(
            f"{people.name} has {len(people.classes)} people, of whom {kept} would be kept to judge by; two are needed "
            "on each side. Give data.protocol, or another data.val_fraction; 0 keeps nobody, and nothing is measured."
        )
    order = np.random.default_rng(seed).permutation(len(people.classes))
    others = People(people, sorted(order[:kept].tolist()))
    test = replace(_all_compared(others, "the people kept apart"), learned=learned)
    note = (
        f"The data bring no protocol: {kept} of {len(people.classes)} people are kept to judge by, chosen with seed "
        f"{seed}; their {len(others):,} images are all compared with each other. {_told(test)}"
    )
    return Split(People(people, sorted(order[kept:].tolist())), others, note, test)


def open_test(
    path: str | Path | None, protocol: str | Path | None = None, *, source: str = "auto",
    val_fraction: float | None = None, seed: int = 0,
) -> tuple[FaceTest, str]:  # fmt: skip
    """What a finished network is judged by, and a sentence on it; people to learn from need not be there.

    Args:
        path: as of :func:`open_faces`; it is not looked at where there is a protocol.
        protocol: as of :func:`open_faces`.
        source: likewise.
        val_fraction: likewise, but 0 compares the images of all people.
        seed: likewise.

    Raises:
        DataError: what the readers find wrong; neither people nor a protocol.
    """
    if protocol is not None:
        test = _test(Path(protocol))
        return test, f"Judged by {protocol}: {len(test.found):,} images. {_told(test)}"
    if path is None:
        raise DataError("There are no faces to judge by: name data.protocol, or a folder of people, data.path.")
    if val_fraction == 0:
        people = _people(Path(path), source)
        test = _all_compared(people, str(path))
        return test, (
            f"The images of all {len(people.classes)} people, {len(people):,}, are compared with each other. "
            f"{_told(test)}"
        )
    split = open_faces(path, source=source, val_fraction=val_fraction, seed=seed)
    return split.test, split.note


def otherwise_aligned(learned: str | None, judged: str | None) -> str | None:
    """The sentence of a warning where faces to judge by are placed otherwise than those learned from; None else.

    Example:
        >>> print(otherwise_aligned("arcface-112", "arcface-112"))
        None
    """
    if learned == judged:
        return None
    first, second = (f"aligned to {one}" if one else "taken as they are" for one in (learned, judged))
    return (
        f"The images that are learned from are {first}, and those to judge by are {second}. Unless somebody has cut "
        "the latter by the same template before, the network is judged wrongly: align both by landmarks, or neither."
    )


def _people(path: Path, source: str) -> Source:
    records = path.suffix == ".rec" or (path.is_dir() and any(path.glob("*.rec")))
    if source == "records" or (source == "auto" and records):
        return RecordSource(path)
    if source not in ("auto", "folder"):
        raise DataError(f"data.source={source} is no data for task=faces; take folder or records.")
    if find_parts(path)[0] != path:
        raise DataError(
            f"{path} has a folder 'train', and each folder is taken for a person. Give data.path={path / 'train'}, and "
            "data.protocol for what is judged by."
        )
    folder = FolderSource(path, statistics=FACES)
    if folder.labels is None:
        raise DataError(f"{path} has images, but no folder for each person. Put each person's into one.")
    return _aligned(folder)


def _aligned(folder: FolderSource) -> Source:
    file = folder.path / LANDMARKS
    return AlignedSource(folder, read_landmarks(file), TEMPLATE) if file.is_file() else folder


def _test(path: Path) -> FaceTest:
    if path.suffix == ".bin":
        pairs, template = read_bin(path), None
    elif path.suffix == ".txt":
        pairs, template = read_pairs(path, path.parent), None
        some = pairs.images
        if isinstance(some, Subset) and isinstance(some.source, FolderSource):
            people = _aligned(some.source)
            template = _template(people)
            pairs = replace(pairs, images=subset(people, some.indices))
    else:
        protocols = read_protocols(path)
        images = ProtocolFaces(protocols[0])
        aligned = None if protocols[0].landmarks is None else TEMPLATE
        return FaceTest(images, protocols[0].found, None, protocols, aligned)
    return FaceTest(pairs.images, np.ones(len(pairs.images), bool), pairs, alignment=template)


def _all_compared(people: Source, name: str) -> FaceTest:
    """Every image with every other one."""
    if len(people) > _MOST_COMPARED:
        raise DataError(
            f"{len(people.classes)} people would be judged by, who have {len(people):,} images: too many to compare "
            f"all with each other (at most {_MOST_COMPARED:,}). Give data.protocol, or a smaller data.val_fraction."
        )
    first, second = (part.astype(np.int32) for part in np.triu_indices(len(people), 1))
    labels = np.asarray(people.labels)
    pairs = PairSet(name, people, first, second, labels[first] == labels[second], folds=1)
    return FaceTest(people, np.ones(len(people), bool), pairs, alignment=_template(people))


def _told(test: FaceTest) -> str:
    """How low the rates are that can be told."""
    said, count, searched = [], test.impostors, test.galleries
    if count:
        said.append(f"{count:,} comparisons are of two people, so FARs below {1 / count:.2g} have no TAR.")
    if searched and (strangers := min(outside for _, outside in searched)):
        said.append(
            f"{strangers:,} searches are for nobody in the gallery, so FPIRs below {1 / strangers:.2g} have no TPIR."
        )
    return " ".join(said)


def _template(source: Source) -> str | None:
    found: str | None = getattr(source, "template", None)
    return found
