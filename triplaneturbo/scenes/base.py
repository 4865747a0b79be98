"""Scenes: what can be looked at. Renderers, isosurface, texturing and evaluation know scenes only.

A field has weights that all prompts share and no state of a call; a scene is a field together with the tensors that
this batch's prompts gave it (`FieldScene`), or explicit meshes (`mesh.MeshScene`). What is evaluated again, recorded as
a graph, cut into parts or detached is therefore named, and done once for all kinds.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.types import FieldSample

FieldKind = Literal["sdf", "density"]
Tensors = Mapping[str, Tensor]
# How d value / d point is computed. analytic: exactly. finite_difference: from values a step away on both sides along
# each axis. forward_inside: from the value and those a step ahead; central_inside: from both sides; these two look at
# points moved into the cube and divide by the step all the same, so that the derivative fades at the cube's sides.
Normals = Literal["analytic", "finite_difference", "forward_inside", "central_inside"]

# Grid points evaluated at a time. What fits the cache of a CPU is 1.5 to 4 times as fast there.
_SLAB, _SLAB_ON_CPU = 1 << 19, 1 << 13


class Field(Module):
    """A function of points in the cube [-radius, radius]^3, read from the tensors of each prompt.

    Every method takes `tensors`, prompt-major (empty where the field's own parameters are the scene), and points
    [B, N, 3] in world units, and is differentiable in both and in the parameters. A subclass gives `value`, `features`
    and `query`; the rest follows, and is overridden where a field knows better.
    """

    role = "scene"
    kind: FieldKind = "sdf"
    """sdf: value is a signed distance, negative inside. density: value is a density, 0 or more."""

    free: ClassVar[bool] = True
    """Whether its parameters alone can be a scene, without tensors of prompts."""
    radius: float
    """Half the edge of the cube, world units."""
    level: float = 0.0
    """The value on the surface."""

    @abstractmethod
    def query(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, features: bool = True, normals: bool = False
    ) -> FieldSample:
        """The field at points.

        features: also the colours before their activation. normals: also d value / d point and the unit normal, which
        points outwards. They are computed by forward operations, so that a loss on them needs first-order reverse mode
        only.
        """

    @abstractmethod
    def value(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        """Signed distance or density alone: the fast path."""

    @abstractmethod
    def features(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        """Colours before their activation alone."""

    def inside(self, values: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Values of the field as a function that is negative inside, 0 on the surface."""
        if self.kind == "density":
            return self.level - values
        return values - self.level if self.level else values

    def level_set(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, resolution: int
    ) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 3"] | None]:
        """What a surface is extracted from at grid points: `inside` there, and how far they move, in cells of the grid.

        resolution: of that grid, points along an edge. The second is None where grids do not deform.
        """
        return self.inside(self.value(tensors, points)), None

    def central_differences(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], step: float, *, inside: bool = False
    ) -> Float[Tensor, "B N 3"]:
        """d value / d point from values at `step` world units on either side along each axis.

        inside: look at points in the cube only, see `Normals`.
        """
        steps = step * torch.eye(3, dtype=points.dtype, device=points.device)
        around = torch.cat((points.unsqueeze(2) + steps, points.unsqueeze(2) - steps), dim=2)
        around = around.clamp(-self.radius, self.radius) if inside else around
        ahead, behind = self.value(tensors, around.flatten(1, 2)).view(*points.shape[:2], 2, 3).unbind(2)
        return (ahead - behind) / (2 * step)

    def forward_differences(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], value: Float[Tensor, "B N 1"], step: float
    ) -> Float[Tensor, "B N 3"]:
        """d value / d point from the value and those `step` world units ahead along each axis, in the cube."""
        steps = step * torch.eye(3, dtype=points.dtype, device=points.device)
        ahead = (points.unsqueeze(2) + steps).clamp(-self.radius, self.radius)
        return (self.value(tensors, ahead.flatten(1, 2)).view(*points.shape[:2], 3) - value) / step

    def differences(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], value: Float[Tensor, "B N 1"], how: Normals, step: float
    ) -> Float[Tensor, "B N 3"]:
        """d value / d point by one of the differences of `Normals`. value: at the points."""
        if how == "forward_inside":
            return self.forward_differences(tensors, points, value, step)
        return self.central_differences(tensors, points, step, inside=how == "central_inside")

    @torch.no_grad()
    def grid(
        self, tensors: Tensors, resolution: int, prompts: int, radius: float | None = None
    ) -> Float[Tensor, "B R R R"]:
        """`inside` at the resolution^3 points that divide [-radius, radius]^3 evenly, axes in order x, y, z.

        Without gradient: a surface depends on the few points next to it, which `level_set` gives. prompts: B. radius:
        None: of the field's cube.
        """
        line = self.grid_line(resolution, tensors, radius)

        def slab(start: int, stop: int) -> Tensor:
            points = torch.stack(torch.meshgrid(line[start:stop], line, line, indexing="ij"), -1)
            value = self.value(tensors, points.view(1, -1, 3).expand(prompts, -1, -1))
            return value.view(prompts, *points.shape[:3])

        return self.inside(in_slabs(slab, resolution, prompts, line.device))

    def grid_line(self, resolution: int, tensors: Tensors, radius: float | None = None) -> Float[Tensor, " R"]:
        """The coordinates of grid points along an axis, on the device and of the type of the tensors or parameters.

        radius: half the edge of the grid; None: of the field's cube.
        """
        like = next(iter((*tensors.values(), *self.parameters())), torch.empty(0))
        extent = self.radius if radius is None else radius
        return torch.linspace(-extent, extent, resolution, device=like.device, dtype=like.dtype)


def in_slabs(slab: Callable[[int, int], Tensor], size: int, prompts: int, device: torch.device) -> Tensor:
    """`slab(start, stop)` for all parts of `size` grid planes, joined along axis 1, without gradient. What is alive at
    a time suits the device: hidden layers of half a million points, 8 thousand on CPU.
    """
    at_once = _SLAB_ON_CPU if device.type == "cpu" else _SLAB
    thickness = max(1, at_once // (size**2 * prompts))
    # Written in place: pieces that live on between the slabs' large temporaries fragment the heap of a thread, which
    # takes ten times the memory (10 GB for 256 points along an edge).
    joined = None
    for start in range(0, size, thickness):
        piece = slab(start, min(start + thickness, size))
        joined = piece.new_empty(len(piece), size, *piece.shape[2:]) if joined is None else joined
        joined[:, start : start + thickness] = piece
    assert joined is not None
    return joined


@dataclass(frozen=True)
class FieldScene:
    """A field and what B prompts gave it.

    tensors: by name, [B, ...] each; empty where the field's own parameters are the scene, which then is one prompt's.
    """

    field: Field
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.tensors.values()))) if self.tensors else 1

    @property
    def radius(self) -> float:
        """Half the edge of the cube that holds the scene, world units."""
        return self.field.radius

    def prompt(self, number: int) -> "FieldScene":
        """The scene of one prompt alone."""
        return FieldScene(self.field, {name: x[number : number + 1] for name, x in self.tensors.items()})

    def query(self, points: Float[Tensor, "B N 3"], *, features: bool = True, normals: bool = False) -> FieldSample:
        """See `Field.query`."""
        return self.field.query(self.tensors, points, features=features, normals=normals)

    def value(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        """See `Field.value`."""
        return self.field.value(self.tensors, points)

    def features(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        """See `Field.features`."""
        return self.field.features(self.tensors, points)

    def level_set(
        self, points: Float[Tensor, "B N 3"], *, resolution: int
    ) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 3"] | None]:
        """See `Field.level_set`."""
        return self.field.level_set(self.tensors, points, resolution=resolution)

    def grid(self, resolution: int, radius: float | None = None) -> Float[Tensor, "B R R R"]:
        """See `Field.grid`."""
        return self.field.grid(self.tensors, resolution, len(self), radius)

    def detached(self) -> tuple["FieldScene", Callable[[], None]]:
        """A copy whose tensors collect gradients of their own, and a function that sends these on, once, to what made
        the tensors.

        So pictures after pictures can be judged, each graph freed before the next, and the geometry is passed through
        once. Parameters of the field itself get their gradients at once, as always.
        """
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}

        def backward() -> None:
            pairs = [(self.tensors[name], leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None]
            if pairs:
                sources, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(sources, gradients)

        return FieldScene(self.field, leaves), backward
