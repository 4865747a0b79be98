"""Scenes that are meshes already: what mesh refinement and texturing start from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.scenes.base import Field
from triplaneturbo.types import Mesh


@dataclass(frozen=True)
class MeshScene:
    """An explicit mesh for each of B prompts, whose vertices may carry gradients.

    texture: the field that gives the features of points on the surface; None: the meshes' own colours per vertex.
    tensors: what the prompts gave that field, by name, [B, ...]. radius: half the edge of the cube that holds the
    meshes, world units.
    """

    meshes: list[Mesh]
    texture: Field | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.texture is None and any(mesh.colors is None for mesh in self.meshes):
            raise ValueError("a mesh without colours per vertex needs a texture: give the field that colours it")

    def __len__(self) -> int:
        """B."""
        return len(self.meshes)

    def prompt(self, number: int) -> "MeshScene":
        """The scene of one prompt alone."""
        tensors = {name: x[number : number + 1] for name, x in self.tensors.items()}
        return replace(self, meshes=self.meshes[number : number + 1], tensors=tensors)

    def features(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        """Features of points on the surfaces, from the texture.

        Raises:
            ValueError: the meshes have none, but colours per vertex.
        """
        if self.texture is None:
            raise ValueError("these meshes have colours per vertex and no texture to read features from")
        return self.texture.features(self.tensors, points)

    def detached(self) -> tuple["MeshScene", Callable[[], None]]:
        """See `FieldScene.detached`; vertices and their colours collect gradients as the tensors do."""
        pairs: list[tuple[Tensor, Tensor]] = []

        def leaf(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            pairs.append((tensor, tensor.detach().requires_grad_()))
            return pairs[-1][1]

        meshes = [
            replace(mesh, vertices=leaf(mesh.vertices), colors=None if mesh.colors is None else leaf(mesh.colors))
            for mesh in self.meshes
        ]
        tensors = {name: leaf(tensor) for name, tensor in self.tensors.items()}

        def backward() -> None:
            reached = [(source, copy.grad) for source, copy in pairs if copy.grad is not None]
            if reached:
                sources, gradients = zip(*reached, strict=True)
                torch.autograd.backward(sources, gradients)

        return replace(self, meshes=meshes, tensors=tensors), backward
