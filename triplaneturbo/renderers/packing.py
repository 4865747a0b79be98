"""Values that differ in number from prompt to prompt, handled all at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.ops.rows import gather_rows
from triplaneturbo.types import Mesh


@dataclass(frozen=True)
class PackedMeshes:
    """The meshes of all prompts one after the other. faces: rows of the joint vertices. vertex_mesh, face_mesh: number
    of the mesh that each belongs to. count: of meshes."""

    vertices: Float[Tensor, "N 3"]
    faces: Int[Tensor, "F 3"]
    vertex_mesh: Int[Tensor, " N"]
    face_mesh: Int[Tensor, " F"]
    count: int

    @classmethod
    def join(cls, meshes: list[Mesh]) -> "PackedMeshes":
        """One mesh after the other."""
        vertices, faces = (torch.cat([getattr(mesh, name) for mesh in meshes]) for name in ("vertices", "faces"))
        sizes = torch.tensor([[len(mesh.vertices), len(mesh.faces)] for mesh in meshes], device=faces.device)
        number = torch.arange(len(meshes), device=faces.device)
        vertex_mesh = number.repeat_interleave(sizes[:, 0], output_size=len(vertices))
        face_mesh = number.repeat_interleave(sizes[:, 1], output_size=len(faces))
        before = sizes[:, 0].cumsum(0) - sizes[:, 0]
        return cls(vertices, faces + before[face_mesh].unsqueeze(1), vertex_mesh, face_mesh, len(meshes))


def split_meshes(
    vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"], vertex_mesh: Int[Tensor, " N"], count: int
) -> list[Mesh]:
    """The single meshes of joint ones, given the mesh of each vertex, ascending."""
    face_mesh = vertex_mesh[faces[:, 0]]
    first_vertex, first_face = (first_items(owner, count) for owner in (vertex_mesh, face_mesh))
    faces = faces - first_vertex[face_mesh].unsqueeze(1)
    sizes = torch.stack([first_vertex.diff(), first_face.diff()]).tolist()
    parts = zip(vertices.split(sizes[0]), faces.split(sizes[1]), strict=True)
    return [Mesh(*part) for part in parts]


def first_items(owner: Int[Tensor, " K"], count: int) -> Int[Tensor, " B1"]:
    """Where the items of each of `count` owners begin in a list sorted by owner, and at last its length."""
    return torch.searchsorted(owner, torch.arange(count + 1, device=owner.device))


class PromptTable:
    """Points sorted by prompt as a table with one row a prompt, filled up to the longest: what a field is asked."""

    def __init__(self, prompt: Int[Tensor, " K"], count: int) -> None:
        first = first_items(prompt, count)
        self.counts = first.diff()
        self.shape = count, int(self.counts.max())
        self.cell = torch.arange(len(prompt), device=prompt.device) + (self.shape[1] * prompt - first[prompt])

    def fill(self, points: Float[Tensor, "K D"], spare: float) -> Float[Tensor, "B L D"]:
        """The table; `spare` in the cells that are left over."""
        channels = points.shape[1]
        table = points.new_full((self.shape[0] * self.shape[1], channels), spare)
        return table.index_copy(0, self.cell, points).view(*self.shape, channels)

    def read(self, table: Float[Tensor, "B L D"]) -> Float[Tensor, "K D"]:
        """The values in the cells of the points, in their order."""
        return gather_rows(table.flatten(0, 1), self.cell)

    def rows(self, table: Float[Tensor, "B L D"]) -> list[Float[Tensor, "_ D"]]:
        """The same, as a list with the values of each prompt."""
        return list(self.read(table).split(self.counts.tolist()))
