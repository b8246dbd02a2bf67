"""Export of trained models: formats, the proof that a file equals its model, int8, and the card beside it."""

from seg_ext.export.formats import EXPORTERS, Exporter
from seg_ext.export.graph import Graph, SemanticGraph
from seg_ext.export.instances import InstanceGraph
from seg_ext.export.verify import Check, verify

__all__ = ["EXPORTERS", "Check", "Exporter", "Graph", "InstanceGraph", "SemanticGraph", "verify"]
