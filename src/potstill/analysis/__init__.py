"""What explains a result: the measures of features and projectors, and what a network costs."""

from potstill.analysis.class_means import ClassMeans
from potstill.analysis.measures import FeatureMeasures
from potstill.analysis.metrics import (
    between_class_cosine,
    direction_alignment,
    mean_projector_distance,
    projector_distance,
)
from potstill.analysis.similarity import linear_cka

__all__ = [
    "ClassMeans",
    "FeatureMeasures",
    "between_class_cosine",
    "direction_alignment",
    "linear_cka",
    "mean_projector_distance",
    "projector_distance",
]
