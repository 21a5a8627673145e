"""IJB-B and IJB-C in the layout in which they are commonly evaluated: cropped images, and text files in ``meta``.

.. code-block:: text

    loose_crop/1.jpg, 2.jpg, ..          one face a file
    meta/ijbc_face_tid_mid.txt           1.jpg 1 69544           image, template, media
    meta/ijbc_template_pair_label.txt    1 11065 1               template, template, 1 for one person
    meta/ijbc_name_5pts_score.txt        1.jpg 46.0 62.0 .. 0.99 image, five points, the detector's score
    meta/ijbc_1N_gallery_G1.csv          TEMPLATE_ID,SUBJECT_ID,FILENAME,..   and G2; S1 and S2 in IJB-B
    meta/ijbc_1N_probe_mixed.csv         the same columns

The first file is needed, and the pairs or a gallery with probes. IJB-A has its own layout (:mod:`potstill.data.ijba`).
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from potstill.data.ijba import is_ijba, read_ijba
from potstill.data.protocol import UNKNOWN, ListedPairs, Protocol
from potstill.data.protocol_files import check_images, line_of, numbers_of, read_rows, read_table
from potstill.errors import DataError

__all__ = ["read_ijb", "read_protocols"]

log = logging.getLogger(__name__)

_MEMBERS = "_face_tid_mid.txt"
_POINTS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")


def read_protocols(folder: Path, images: Path | None = None) -> tuple[Protocol, ...]:
    """The protocols of a folder: one of IJB-B, IJB-C or one made by us; one for each split of IJB-A.

    All of them are over the same ``images``, so that embeddings of those serve every split.

    Args:
        folder: with ``meta/``, or with the folders of splits.
        images: where the images are; by default ``loose_crop`` in ``folder``, and for IJB-A ``images`` or ``folder``.

    Raises:
        DataError: neither layout; files that contradict themselves or each other.
    """
    if is_ijba(folder):
        return read_ijba(folder, images)
    return (read_ijb(folder, images),)


def read_ijb(folder: Path, images: Path | None = None) -> Protocol:
    """A protocol in the layout that the module tells.

    Args:
        folder: with ``meta/`` in it.
        images: where the images are; ``loose_crop`` in ``folder`` by default.

    Raises:
        DataError: a file that is missing or cannot be read; names that leave the folder of the images or are not
            there; a template that is compared but has no images, or that two persons own.
    """
    path = _members_file(folder)
    prefix = path.name.removesuffix(_MEMBERS)
    root = images if images is not None else folder / "loose_crop"
    columns = read_table(path, {"image": "name", "template": "id", "media": "id"})
    encoded = columns["image"].combine_chunks().dictionary_encode()
    names = tuple(encoded.dictionary.to_pylist())
    check_images(root, names, path)
    template_ids, template_of = np.unique(columns["template"].to_numpy(), return_inverse=True)
    media_of = np.unique(columns["media"].to_numpy(), return_inverse=True)[1]
    subject_of = np.full(len(template_ids), UNKNOWN, np.int64)
    sets = _Sets(path, template_ids, subject_of)
    galleries = {
        file.stem.rpartition("_")[2]: sets.read(file) for file in sorted(path.parent.glob(f"{prefix}_1N_gallery_*.csv"))
    }
    searched = path.with_name(f"{prefix}_1N_probe_mixed.csv")
    if galleries and not searched.is_file():
        raise DataError(f"{path.parent} has galleries but no {searched.name}. Put the probes' file there.")
    listed = path.with_name(f"{prefix}_template_pair_label.txt")
    pairs = _pairs(listed, template_ids, path) if listed.is_file() else None
    if pairs is None and not galleries:
        raise DataError(
            f"{path.parent} has nothing to compare: neither {listed.name} nor {prefix}_1N_gallery_G1.csv. "
            "Put one of them there."
        )
    probes = sets.read(searched) if galleries else np.zeros(0, np.int32)
    if pairs is not None:
        _warn_of_contradictions(pairs, subject_of, listed)
    points, scores = _points(path.with_name(f"{prefix}_name_5pts_score.txt"), names)
    return Protocol(
        name=f"{folder.name} ({prefix})",
        root=root,
        images=names,
        image_of=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32),
        template_of=template_of.astype(np.int32),
        media_of=media_of.astype(np.int32),
        template_ids=template_ids,
        subject_of=subject_of,
        pairs=pairs,
        galleries=galleries,
        probes=probes,
        landmarks=points,
        scores=scores,
    )


def _members_file(folder: Path) -> Path:
    found = sorted((folder / "meta").glob(f"*{_MEMBERS}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{folder / 'meta'} has several protocols: {', '.join(file.name for file in found)}. "
            "Give each a folder of its own."
        )
    raise DataError(
        f"{folder} is no face protocol: there is no meta/*{_MEMBERS} as in IJB-B and IJB-C, and no folder split1 with "
        "verify_metadata_1.csv or search_gallery_1.csv as in IJB-A."
    )


class _Sets:
    """Reads galleries and probes, and learns from them whose the templates are."""

    def __init__(self, members: Path, template_ids: np.ndarray, subject_of: np.ndarray) -> None:
        self.members = members
        self.template_ids = template_ids
        self.subject_of = subject_of

    def read(self, path: Path) -> np.ndarray:
        """The numbers of a file's templates, ``(T',)`` int32 in the order of the files' ids."""
        rows = [
            (line, _whole(path, line, row, "TEMPLATE_ID"), _whole(path, line, row, "SUBJECT_ID"))
            for line, row in read_rows(path, ("TEMPLATE_ID", "SUBJECT_ID"))
        ]
        if not rows:
            raise DataError(f"{path} has a header but no templates.")
        lines, ids, subjects = (np.array(column, np.int64) for column in zip(*rows, strict=True))
        numbers, strange = numbers_of(ids, self.template_ids)
        if strange is not None:
            raise DataError(
                f"{path}, line {lines[strange]}: the template {ids[strange]} has no images in {self.members.name}."
            )
        if (subjects < 0).any():
            line = lines[(subjects < 0).argmax()]
            raise DataError(f"{path}, line {line}: a SUBJECT_ID below 0 names nobody.")
        found, rows_of = np.unique(numbers, return_index=True)
        new = self.subject_of[found] == UNKNOWN
        self.subject_of[found[new]] = subjects[rows_of[new]]
        other = self.subject_of[numbers] != subjects
        if other.any():
            row = other.argmax()
            raise DataError(
                f"{path}, line {lines[row]}: the template {ids[row]} is of subject {subjects[row]}, and elsewhere of "
                f"{self.subject_of[numbers[row]]}. A template is of one person."
            )
        return found


def _whole(path: Path, line: int, row: dict[str, str], name: str) -> int:
    try:
        return int(row[name])
    except ValueError:
        raise DataError(
            f"{path}, line {line}: the {name} is {row[name]!r}, where a whole number is expected."
        ) from None


def _pairs(path: Path, template_ids: np.ndarray, members: Path) -> ListedPairs:
    columns = read_table(path, {"first template": "id", "second template": "id", "label": "label"})
    sides = []
    for name in ("first template", "second template"):
        ids = columns.pop(name).to_numpy()
        numbers, strange = numbers_of(ids, template_ids)
        if strange is not None:
            raise DataError(
                f"{path}, line {line_of(path, strange)}: the template {ids[strange]} has no images in {members.name}."
            )
        sides.append(numbers)
    labels = columns["label"]
    wrong = pc.invert(pc.is_in(labels, value_set=pa.array([0, 1])))
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise DataError(
            f"{path}, line {line_of(path, row)}: the label is {labels[row].as_py()}; it is 1 for two templates of one "
            "person and 0 for others."
        )
    return ListedPairs(sides[0], sides[1], labels.to_numpy() == 1)


def _warn_of_contradictions(pairs: ListedPairs, subject_of: np.ndarray, path: Path) -> None:
    first, second = subject_of[pairs.first], subject_of[pairs.second]
    wrong = ((first == second) != pairs.same) & (first != UNKNOWN) & (second != UNKNOWN)
    if wrong.any():
        log.warning(
            "%s, line %d: the label contradicts the subjects of the galleries and probes, and so do %d further rows. "
            "The label is what counts.",
            path,
            line_of(path, int(wrong.argmax())),
            wrong.sum() - 1,
        )


def _points(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Landmarks ``(N, 5, 2)`` and scores ``(N,)`` of the images, NaN for those that the file lacks; None without it."""
    if not path.is_file():
        return None, None
    coordinates = [f"{axis} of the {point}" for point in _POINTS for axis in "xy"]
    columns = read_table(path, {"image": "name", **dict.fromkeys([*coordinates, "score"], "number")})
    listed = columns.pop("image")
    places = _places(listed, names, path)
    values = np.stack([column.to_numpy() for column in columns.values()], axis=1)  # (rows, 11)
    found = np.full((len(names), values.shape[1]), np.nan, np.float32)
    known = places >= 0
    found[places[known]] = values[known]
    return found[:, :10].reshape(-1, 5, 2), found[:, 10]


def _places(listed: pa.ChunkedArray, names: Iterable[str], path: Path) -> np.ndarray:
    """The number of the image that each row names, -1 where it is of no template."""
    places = pc.index_in(listed, value_set=pa.array(names, pa.string())).fill_null(-1).to_numpy()
    used = np.sort(places[places >= 0])
    twice = used[1:][used[1:] == used[:-1]]
    if len(twice):
        row = int(np.flatnonzero(places == twice[0])[1])
        raise DataError(f"{path}, line {line_of(path, row)}: the image {listed[row].as_py()!r} stands there twice.")
    return places
