"""The student alone, in formats that other programs read: safetensors, ONNX and ``torch.export``."""

from potstill.export.formats import FORMATS
from potstill.export.write import TOLERANCE, Exported, export

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export"]
