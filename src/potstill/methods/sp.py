"""Similarity-preserving distillation (Tung and Mori)."""

from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import gram, unit
from potstill.methods.registry import register
from potstill.methods.relations import check_pairs, check_rows
from potstill.networks.features import Features, FeatureSpec

__all__ = ["SP", "sp"]


def sp(student_map: Tensor, teacher_map: Tensor, eps: float = 1e-12) -> Tensor:
    r"""How far apart the two networks' similarities between the images of a batch are.

    .. math:: L_{SP} = \frac{1}{b^2} \lVert \tilde G^t - \tilde G^s \rVert_F^2, \qquad
              G = X X^\top, \qquad \tilde G_{i\cdot} = G_{i\cdot} / \lVert G_{i\cdot} \rVert

    with X the maps, one image a row. Both matrices are b x b, so channels and sizes need not agree. No gradient
    reaches the teacher.

    Args:
        student_map: ``(B, ...)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_map: ``(B, ...)``.
        eps: a row of G shorter than this counts as zero and takes no gradient. All other values are untouched by it.

    Returns:
        A scalar; 0 for a batch of one image.

    Raises:
        NetworkError: for two batches of different lengths.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682), equations 1
    to 4. The same value as in RepDistiller's ``SP.py``. There an image whose map is all zero takes gradients of about
    1e11, because eps is what its row is divided by; here they are zero.

    Example:
        >>> import torch
        >>> sp(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0]]))
        tensor(0.2929)
    """
    check_rows(student_map, teacher_map, "sp")
    similarity_s = unit(gram(student_map), eps)
    similarity_t = unit(gram(teacher_map.detach()), eps)
    return (similarity_t - similarity_s).square().mean()


@register("sp")
class SP(Method):
    """Similarities within the batch at one map; the common objective is ce + 3000 sp.

    The loss depends on the size of the batch; in distributed training every process compares the images it has.

    Args:
        setting: both networks, with maps; of any sizes.
        layer: which of the maps, counted from the stem at 0, or backwards from the last at -1.

    Raises:
        NetworkError: where a network has no such map.
        RecipeError: for no teacher, or a batch of one image.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(self, setting: Setting, *, layer: int = -1) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "sp")
        check_pairs(setting, "sp")
        _check_layer("student", setting.student, layer)
        _check_layer("teacher", teacher, layer)
        self.layer = layer

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps."""
        return sp(student.maps[self.layer], teacher_features(teacher, "sp").maps[self.layer])


def _check_layer(who: str, spec: FeatureSpec, layer: int) -> None:
    count = len(spec.maps)
    if not -count <= layer < count:
        raise NetworkError(
            f"sp compares the maps of layer {layer}, but the {who} has {count} maps. Choose another layer, or name "
            f"the layers in {who}.taps.maps."
        )
