"""What an exporter is."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from triplaneturbo.base import Component
from triplaneturbo.exporters.origin import Origin
from triplaneturbo.types import Mesh


class Exporter(Component):
    """Writes the meshes of prompts."""

    role = "exporter"

    @abstractmethod
    def __call__(
        self, meshes: Sequence[Mesh], prompts: Sequence[str], folder: str | Path, origins: Sequence[Origin]
    ) -> list[Path]:
        """Write one mesh a prompt below `folder`; returns the paths of the mesh files."""

    def check(self, prompts: Sequence[str], folder: str | Path, origins: Sequence[Origin]) -> None:
        """Raises WriteError: something else is in the place of one of them. Called before the first is made."""
