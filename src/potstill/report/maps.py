"""A map of the student's and the teacher's embeddings: images that a network finds alike lie together."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from potstill.report.blocks import Block, Figure, Grid, Note, Section, Text
from potstill.report.classes import class_names
from potstill.report.figures import SERIES, colour, rounded, shown
from potstill.report.outputs import Outputs
from potstill.report.reading import RunRecord

__all__ = ["embedding_map", "layouts", "shared_neighbours"]

_FEWEST = 10  # images, for a map to show anything
_NEIGHBOURS = 10
_ROUNDS = 750  # of t-SNE: on some hundred images it has settled by then
_SEED = 0
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "hexagon", "pentagon")

Vectors = NDArray[np.float64]


def layouts(student: Vectors, teacher: Vectors | None) -> tuple[Vectors, Vectors | None]:
    """Places in the plane by t-SNE: the teacher's first, the student's beginning from them, so that the two compare.

    Args:
        student: ``(M, D)``.
        teacher: ``(M, E)``; None where there is none.

    Returns:
        ``(M, 2)`` of each, scaled so that the widest direction goes from -1 to 1.
    """
    if teacher is None:
        return _scaled(_laid_out(student, "pca")), None
    theirs = _laid_out(teacher, "pca")
    # From a layout at its full size there is nothing left to exaggerate; t-SNE's usual start would turn and mirror it.
    ours = _laid_out(student, theirs.astype(np.float32), early_exaggeration=1.0)
    turned, _ = orthogonal_procrustes(ours, theirs)
    return _scaled(ours @ turned), _scaled(theirs)


def _laid_out(vectors: Vectors, begin: Any, **more: Any) -> Vectors:
    if vectors.shape[1] < 2:
        vectors = np.pad(vectors, ((0, 0), (0, 2 - vectors.shape[1])))
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    method = TSNE(2, perplexity=perplexity, init=begin, max_iter=_ROUNDS, random_state=_SEED, **more)
    places: Vectors = method.fit_transform(vectors.astype(np.float32)).astype(np.float64)
    return places - places.mean(0)


def _scaled(places: Vectors) -> Vectors:
    return places / max(float(np.abs(places).max()), 1e-12)


def shared_neighbours(student: Vectors, teacher: Vectors, count: int = _NEIGHBOURS) -> float:
    """Percent of the images nearest to one for the teacher that are among the nearest for the student too.

    Args:
        student: ``(M, D)``.
        teacher: ``(M, E)``.
        count: how many neighbours are looked at.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(50, 4))
        >>> shared_neighbours(points, 3 * points)
        100.0
    """
    near = [
        NearestNeighbors(n_neighbors=count).fit(one).kneighbors(return_distance=False) for one in (student, teacher)
    ]
    shared = [len(set(ours) & set(theirs)) for ours, theirs in zip(*near, strict=True)]
    return 100 * float(np.mean(shared)) / count


def embedding_map(run: RunRecord) -> Section:
    """The section of the map."""
    outputs, title = run.outputs, "Map of the embeddings"
    if outputs is None or len(outputs.map_rows) <= _FEWEST:
        why = "The run kept no embeddings of its validation images (predictions.safetensors)"
        if outputs is not None:
            why = f"Of {len(outputs.map_rows)} images no map can be made"
        elif run.result is None:
            why = "Embeddings of the validation images are kept when a run finishes, and this one has not"
        return Section("map", title, [Note(f"There is no map: {why[0].lower()}{why[1:]}.")])
    teacher = outputs.map_teacher
    ours, theirs = layouts(outputs.map_student, teacher)
    names = class_names(run, outputs)
    figures: list[Block] = []
    if theirs is not None:
        figures.append(_figure("Teacher", theirs, outputs, names))
    figures.append(_figure("Student", ours, outputs, names))
    return Section("map", title, [Text(_explained(outputs)), Grid(figures)])


def _explained(outputs: Outputs) -> str:
    said = (
        f"{len(outputs.map_rows)} validation images, of each class as many as can be, placed by t-SNE from the "
        f"leading directions of their embeddings. Near means alike; distances between far groups and the axes mean "
        f"nothing. Hollow points are those that the student gets wrong."
    )
    if outputs.map_teacher is not None:
        part = shared_neighbours(outputs.map_student, outputs.map_teacher)
        said += (
            f" The student's map begins from the teacher's and is turned to it, so that places can be compared. "
            f"Of the {_NEIGHBOURS} images nearest to one for the teacher, {part:.0f} % are so for the student too; "
            f"that is measured on the embeddings, not on the map."
        )
    return said


def _figure(title: str, places: Vectors, outputs: Outputs, names: list[str]) -> Figure:
    rows = outputs.map_rows
    label, right = outputs.label[rows], outputs.student_right[rows]
    present = np.unique(label)
    if len(present) <= len(_SYMBOLS):
        groups = [(names[k], label == k, i) for i, k in enumerate(present.tolist())]
    else:
        groups = [("right", right, 0), ("wrong", ~right, 1)]
    data = [_trace(name, mask, i, places, outputs, names) for name, mask, i in groups if mask.any()]
    bare = {"visible": False, "range": [-1.08, 1.08]}
    layout: dict[str, Any] = {"xaxis": bare, "yaxis": {**bare, "scaleanchor": "x"}, "hovermode": "closest"}
    layout |= {"legend": {"y": -0.02, "yanchor": "top"}, "margin": {"l": 8, "r": 8, "t": 8, "b": 8}}
    count = f"{len(rows)} images of {len(present)} classes"
    return Figure(
        title, f"Map of the {title.lower()}'s embeddings of {count}.", data, layout, height=440,
        classes=[names[k] for k in present],
    )  # fmt: skip


def _trace(
    name: str, mask: NDArray[np.bool_], place: int, places: Vectors, outputs: Outputs, names: list[str]
) -> dict[str, Any]:
    """The points of one class, or of all that are right or wrong; each carries its class's number for the page."""
    rows = outputs.map_rows[mask]
    present = {int(k): i for i, k in enumerate(np.unique(outputs.label[outputs.map_rows]))}
    right, symbol = outputs.student_right[rows], _SYMBOLS[place]
    taken = [f"the student: {shown(names[k])}" for k in outputs.student[rows]]
    if outputs.teacher is not None:
        taken = [
            f"{one}<br>the teacher: {shown(names[k])}" for one, k in zip(taken, outputs.teacher[rows], strict=True)
        ]
    x, y = places[mask].T
    return {
        "type": "scatter", "mode": "markers", "name": shown(name),
        "x": rounded(x.tolist(), 4), "y": rounded(y.tolist(), 4),
        "customdata": [
            [present[int(k)], shown(names[k]), said] for k, said in zip(outputs.label[rows], taken, strict=True)
        ],
        "marker": {
            "size": 6, "color": colour(place % SERIES), "opacity": 0.8, "line": {"width": 1},
            "symbol": [symbol if fine else f"{symbol}-open" for fine in right],
        },
        "selected": {"marker": {"opacity": 1, "size": 9}}, "unselected": {"marker": {"opacity": 0.08}},
        "hovertemplate": "<b>%{customdata[1]}</b><br>%{customdata[2]}<extra></extra>",
    }  # fmt: skip
