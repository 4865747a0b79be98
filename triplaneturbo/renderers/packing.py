"""Values that differ in number from prompt to prompt, handled all at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.ops.rows import gather_rows
from triplaneturbo.types import Mesh


@dataclass(frozen=True)
class PackedMeshes:
    """The meshes of all prompts one after the other. faces: rows of the joint vertices. face_mesh: number of the mesh
    that each belongs to. count: of meshes."""

    vertices: Float[Tensor, "N 3"]
    faces: Int[Tensor, "F 3"]
    face_mesh: Int[Tensor, " F"]
    count: int

    @classmethod
    def join(cls, meshes: list[Mesh]) -> "PackedMeshes":
        """One mesh after the other."""
        faces, face_mesh, before = [], [], 0
        for number, mesh in enumerate(meshes):
            faces.append(mesh.faces + before)
            face_mesh.append(mesh.faces.new_full((len(mesh.faces),), number))
            before += len(mesh.vertices)
        vertices = torch.cat([mesh.vertices for mesh in meshes])
        return cls(vertices, torch.cat(faces), torch.cat(face_mesh), len(meshes))


def split_meshes(vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"], sizes: list[tuple[int, int]]) -> list[Mesh]:
    """The single meshes of joint ones, given how many vertices and faces each has."""
    meshes, first_vertex, first_face = [], 0, 0
    for n_vertices, n_faces in sizes:
        own = faces.narrow(0, first_face, n_faces) - first_vertex
        meshes.append(Mesh(vertices.narrow(0, first_vertex, n_vertices), own))
        first_vertex, first_face = first_vertex + n_vertices, first_face + n_faces
    return meshes


class PromptTable:
    """Points sorted by prompt as a table with one row a prompt, filled up to the longest: what a field is asked.

    Cells that are left over repeat points of their row: a field's lookups there spread like those of the others, where
    one point in all of them would make their gradients, which are 0, wait for each other.

    counts: of the points of each prompt, known to the host, so that nothing here waits for a device.
    """

    def __init__(self, counts: list[int], device: torch.device) -> None:
        self.counts = counts
        self.shape = len(counts), max(counts)
        total, starts = sum(counts), [sum(counts[:row]) for row in range(len(counts))]
        along = torch.arange(self.shape[1], device=device)
        # A prompt without points repeats those of others.
        sources = [s + along % n if n else along % max(total, 1) for s, n in zip(starts, counts, strict=True)]
        self.source = torch.cat(sources)
        self.cell = torch.cat([along[:n] + row * self.shape[1] for row, n in enumerate(counts)])

    def fill(self, points: Float[Tensor, "K D"]) -> Float[Tensor, "B L D"]:
        """The table."""
        return gather_rows(points, self.source).view(*self.shape, points.shape[1])

    def read(self, table: Float[Tensor, "B L D"]) -> Float[Tensor, "K D"]:
        """The values in the cells of the points, in their order."""
        return gather_rows(table.flatten(0, 1), self.cell)

    def rows(self, table: Float[Tensor, "B L D"]) -> list[Float[Tensor, "_ D"]]:
        """The same, as a list with the values of each prompt."""
        return list(self.read(table).split(self.counts))
