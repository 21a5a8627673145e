"""What turns a student's embedding into something that can be compared with the teacher's."""

from potstill.projectors.ensemble import Activation, Constraint, Init, Layer, ProjectorEnsemble
from potstill.projectors.orthogonal import OrthogonalLinear

__all__ = ["Activation", "Constraint", "Init", "Layer", "OrthogonalLinear", "ProjectorEnsemble"]
