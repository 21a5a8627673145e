"""Distillation methods: one a file, each a pure function on tensors and a thin module around it."""

from potstill.methods.ab import AB
from potstill.methods.afd import AFD
from potstill.methods.at import AT
from potstill.methods.base import Known, Method, Needs, Setting
from potstill.methods.cc import CC
from potstill.methods.ce import CE
from potstill.methods.cid import CID
from potstill.methods.crd import CRD
from potstill.methods.dgkd import DGKD
from potstill.methods.direction import CosineMean, InfoNCEMean
from potstill.methods.dist import DIST
from potstill.methods.dkd import DKD
from potstill.methods.dml import DML
from potstill.methods.fitnets import FitNets
from potstill.methods.fsp import FSP
from potstill.methods.ft import FT
from potstill.methods.kd import KD
from potstill.methods.margins import ArcFace, CosFace, SphereFace
from potstill.methods.mimic import Mimic
from potstill.methods.mutual import Mutual
from potstill.methods.nd import ND
from potstill.methods.norms import HAFN, SAFN, NormMatch
from potstill.methods.nst import NST
from potstill.methods.ofd import OFD
from potstill.methods.pefd import PEFD
from potstill.methods.pkt import PKT
from potstill.methods.pyramid import PEFDMaps
from potstill.methods.registry import build_method, check_hyper, hyper_parameters, methods, register
from potstill.methods.reviewkd import ReviewKD
from potstill.methods.rkd import RKD
from potstill.methods.semckd import SemCKD
from potstill.methods.sp import SP
from potstill.methods.srrl import SRRL
from potstill.methods.task import Task
from potstill.methods.vid import VID
from potstill.methods.vkd import VkD

__all__ = [
    "AB",
    "AFD",
    "AT",
    "CC",
    "CE",
    "CID",
    "CRD",
    "DGKD",
    "DIST",
    "DKD",
    "DML",
    "FSP",
    "FT",
    "HAFN",
    "KD",
    "ND",
    "NST",
    "OFD",
    "PEFD",
    "PKT",
    "RKD",
    "SAFN",
    "SP",
    "SRRL",
    "VID",
    "ArcFace",
    "CosFace",
    "CosineMean",
    "FitNets",
    "InfoNCEMean",
    "Known",
    "Method",
    "Mimic",
    "Mutual",
    "Needs",
    "NormMatch",
    "PEFDMaps",
    "ReviewKD",
    "SemCKD",
    "Setting",
    "SphereFace",
    "Task",
    "VkD",
    "build_method",
    "check_hyper",
    "hyper_parameters",
    "methods",
    "register",
]
