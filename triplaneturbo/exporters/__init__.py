"""Meshes to files and pictures."""

from triplaneturbo.exporters import mesh_exporter as mesh_exporter
from triplaneturbo.exporters.base import Exporter

__all__ = ["Exporter"]
