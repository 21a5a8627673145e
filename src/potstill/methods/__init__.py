"""Distillation methods: one a file, each a pure function on tensors and a thin module around it."""

from potstill.methods.base import Method, Needs, Setting
from potstill.methods.ce import CE
from potstill.methods.kd import KD
from potstill.methods.pefd import PEFD
from potstill.methods.registry import build_method, check_hyper, hyper_parameters, methods, register

__all__ = [
    "CE",
    "KD",
    "PEFD",
    "Method",
    "Needs",
    "Setting",
    "build_method",
    "check_hyper",
    "hyper_parameters",
    "methods",
    "register",
]
