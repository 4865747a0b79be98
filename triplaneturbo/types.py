"""What passes between the rooms.

Letters in shapes: B prompts, V views a prompt, C channels, H W image size, N points, R rays, S samples a ray,
L text tokens. View tensors are prompt-major: view v of prompt b is row b * V + v.
"""

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Movable = TypeVar("Movable", bound="_Movable")


class _Movable:
    """Dataclasses of tensors that move between devices as one."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def to(self: Movable, device: torch.device | str) -> Movable:
        """The same, with all tensors on `device`."""
        changes: dict[str, object] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (Tensor, _Movable)):
                changes[f.name] = value.to(device)
            elif isinstance(value, tuple) and value and isinstance(value[0], _Movable):
                changes[f.name] = tuple(v.to(device) for v in value)
            elif isinstance(value, dict) and f.name == "conditions":
                changes[f.name] = {name: v.to(device) for name, v in value.items()}
        return replace(self, **changes)


@dataclass(frozen=True)
class Run:
    """What the launcher tells a system and its data. seed: key of all random draws. save: the folder of pictures.
    export: that of exported meshes; None: below `save`."""

    seed: int = 0
    save: Path = Path("outputs")
    export: Path | None = None


@dataclass(frozen=True)
class Cameras(_Movable):
    """Views of B prompts, V each (rows M = B * V, prompt-major). World: right-handed, z up, azimuth 0 on +x.

    c2w: OpenGL camera-to-world, columns right, up, backward, position.
    fovy: vertical field of view, radians.
    distance: of the camera from the origin.
    distance_relative: the distance as it was configured: times tan(fovy / 2) if relative, else the same.
    elevation_deg, azimuth_deg: of the camera position.
    n_view: V.
    """

    c2w: Float[Tensor, "M 4 4"]
    fovy: Float[Tensor, " M"]
    distance: Float[Tensor, " M"]
    distance_relative: Float[Tensor, " M"]
    elevation_deg: Float[Tensor, " M"]
    azimuth_deg: Float[Tensor, " M"]
    n_view: int

    @property
    def positions(self) -> Float[Tensor, "M 3"]:
        return self.c2w[:, :3, 3]

    @property
    def w2c_rotation(self) -> Float[Tensor, "M 3 3"]:
        return self.c2w[:, :3, :3].transpose(1, 2)

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def select(self, rows: Int[Tensor, " K"] | slice, n_view: int) -> "Cameras":
        """The cameras of `rows`, as `n_view` views a prompt."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "n_view"}
        return Cameras(**picked, n_view=n_view)


@runtime_checkable
class Numbered(Protocol):
    """A micro-batch; `step` counts them."""

    @property
    def step(self) -> int: ...


MicroBatch = TypeVar("MicroBatch", bound=Numbered)

# Where a camera stands: what a text by view says of it. Front: around +x. In the order of `TextStates.by_view`.
SIDES = ("front", "side", "back", "overhead")


@dataclass(frozen=True)
class TextStates(_Movable):
    """What an encoder says about B prompts.

    tokens: last hidden states. pooled: the text as one vector, such as its end-of-text state.
    negative: last hidden states of the negative prompt, empty: of the empty prompt (one row each, broadcast over B).
    by_view: last hidden states of the prompts with each of `SIDES` named, and view_limits, degrees: the azimuth up to
    which the front is seen and from 180 down the back, the elevation from which it is overhead. None without them.
    """

    tokens: Float[Tensor, "B L C"]
    pooled: Float[Tensor, "B P"]
    negative: Float[Tensor, "1 L C"]
    empty: Float[Tensor, "1 L C"]
    by_view: Float[Tensor, "D B L C"] | None = None
    view_limits: tuple[float, float, float] = (45.0, 45.0, 60.0)

    def seen_from(self, cameras: Cameras, prompts: Int[Tensor, " N"]) -> Float[Tensor, "N L C"]:
        """The states of the prompt of each camera, with the side that the camera sees.

        Raises:
            ValueError: the encoder was not asked for them.
        """
        return self._texts_by_view[self.sides(cameras), prompts]

    def blended(self, mix: Float[Tensor, "N D"], prompts: Int[Tensor, " N"]) -> Float[Tensor, "N L C"]:
        """The states of the prompts with each of `SIDES`, summed with these shares.

        Raises:
            ValueError: the encoder was not asked for them.
        """
        return torch.einsum("nd,dnlc->nlc", mix, self._texts_by_view[:, prompts])

    def with_side(
        self, sides: Int[Tensor, " N"], prompts: Int[Tensor, " N"], otherwise: Float[Tensor, "1 L C"]
    ) -> Float[Tensor, "N L C"]:
        """The states of the prompts with the side of that number in `SIDES`, `otherwise` for the number after the last.

        Raises:
            ValueError: the encoder was not asked for them.
        """
        texts = self._texts_by_view
        known = (sides < len(texts))[:, None, None]
        return torch.where(known, texts[sides.clamp(max=len(texts) - 1), prompts], otherwise)

    def between(self, share: float) -> "TextStates":
        """States (1 - share) of the first prompt and share of the second."""

        def blended(states: Tensor, dim: int = 0) -> Tensor:
            first, second = states.split(1, dim)
            return torch.lerp(first, second, share)

        by_view = None if self.by_view is None else blended(self.by_view, 1)
        return replace(self, tokens=blended(self.tokens), pooled=blended(self.pooled), by_view=by_view)

    @property
    def _texts_by_view(self) -> Float[Tensor, "D B L C"]:
        if self.by_view is None:
            raise ValueError("there are no texts by view: set by_view=true for this encoder in data.conditions")
        return self.by_view

    def sides(self, cameras: Cameras) -> Int[Tensor, " N"]:
        """Which of `SIDES` each camera sees."""
        front, back, overhead = self.view_limits
        away = ((cameras.azimuth_deg + 180) % 360 - 180).abs()
        side = torch.where(away < front, 0, torch.where(away > 180 - back, 2, 1))
        return torch.where(cameras.elevation_deg > overhead, 3, side)


@dataclass(frozen=True)
class Condition(_Movable):
    """What a teacher is told about N pictures. A teacher that is told more extends it by further tensors."""

    text: Float[Tensor, "N L C"]
    camera: Float[Tensor, "N K"] | None = None

    @classmethod
    def join(cls, conditions: Sequence["Condition"]) -> "Condition":
        """Several as one, their pictures one after the other."""

        first = conditions[0]
        given = [f.name for f in fields(first) if getattr(first, f.name) is not None]
        return replace(first, **{name: torch.cat([getattr(c, name) for c in conditions]) for name in given})


@dataclass(frozen=True)
class Batch(_Movable):
    """One micro-batch.

    prompts: captions. samples: their global sample indices (keys of all random draws). step: micro-batch counter.
    cameras: one fresh set for each round of a PRD step. image_size, ray_size: (height, width) of the rasteriser and
    volume renderer. latent_shape: of the noise of one prompt, (planes, channels, height, width).
    conditions: by encoder, what it says about the prompts; the generator's comes first. Empty until the data module has
    encoded the prompts. film: of two prompts, each camera sees what lies between them, the first the one, the last the
    other.
    """

    prompts: tuple[str, ...]
    samples: tuple[int, ...]
    step: int
    cameras: tuple[Cameras, ...]
    image_size: tuple[int, int]
    ray_size: tuple[int, int]
    latent_shape: tuple[int, int, int, int]
    conditions: dict[str, TextStates] = field(default_factory=dict)
    film: bool = False

    def between(self, share: float) -> "Batch":
        """Of a film, the prompt that is no text: states that are (1 - share) of the first and share of the second."""
        states = {name: each.between(share) for name, each in self.conditions.items()}
        return replace(
            self, prompts=(" to ".join(self.prompts),), samples=self.samples[:1], conditions=states, film=False
        )

    @property
    def condition(self) -> TextStates:
        """What the generator is told."""
        return next(iter(self.conditions.values()))


@dataclass(frozen=True)
class FieldSample:
    """The field at B * N points. value: signed distance, negative inside, or density. features: colours before their
    activation. gradient: d value / d point. normal: the unit vector that points outwards. Parts that were not asked for
    are None."""

    value: Float[Tensor, "B N 1"]
    features: Float[Tensor, "B N F"] | None = None
    gradient: Float[Tensor, "B N 3"] | None = None
    normal: Float[Tensor, "B N 3"] | None = None


@runtime_checkable
class ColoredSurface(Protocol):
    """What a mesh approximates: a surface in world units and its colours."""

    def project(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The points of the surface next to points near it; points that find none stay."""
        ...

    def colors(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display colours in [0, 1] at points on the surface."""
        ...


@dataclass(frozen=True)
class Texture(_Movable):
    """A picture and where the faces of a mesh lie in it.

    image: display colours in [0, 1], rows from the top. coordinates: (u, v) in [0, 1], u to the right, v downwards; a
    vertex of the mesh has several where charts meet. vertices: the mesh's vertex of each. faces: rows of coordinates;
    vertices[faces] are the faces of the mesh.
    """

    image: Float[Tensor, "H W 3"]
    coordinates: Float[Tensor, "T 2"]
    vertices: Int[Tensor, " T"]
    faces: Int[Tensor, "F 3"]


@dataclass
class Mesh(_Movable):
    """A triangle mesh in world units. Empty meshes (0 vertices) are legal values; exporting one is an error.

    vertices: V x 3. faces: F x 3, counter-clockwise seen from outside. colors: per vertex in [0, 1]. texture: takes the
    place of these colours. surface: what the mesh was extracted from, where that is known; it is not moved by `to`.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    colors: Float[Tensor, "V 3"] | None = None
    texture: Texture | None = None
    surface: ColoredSurface | None = None


# A tensor, or a list with an entry a prompt; who reads one knows what stands under its name.
Extra = Any


@dataclass(frozen=True)
class Views:
    """Rendered pictures, rows prompt-major, [M, H, W, .], all differentiable.

    rgb: [0, 1], composited on the background. normal: camera space as colours (n + 1) / 2, x flipped, on
    (.5, .5, 1), as RichDreamer was trained on. disparity: (far - d) / (far - near) in [0, 1], 0 on the background.
    opacity: [0, 1]. depth: distance along the ray, weighted by opacity. extras: what regularisers need, by name
    (sdf_grad [K, 3], sdf, normal_world, meshes, ...); a renderer gives what it has.
    """

    rgb: Float[Tensor, "M H W 3"]
    normal: Float[Tensor, "M H W 3"]
    disparity: Float[Tensor, "M H W 1"]
    opacity: Float[Tensor, "M H W 1"]
    depth: Float[Tensor, "M H W 1"]
    normal_white: Float[Tensor, "M H W 3"] | None = None
    extras: dict[str, Extra] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreGradient:
    """d loss / d pixel for each kind of picture a teacher looks at (None: no teacher looked), and what to log.

    logs: detached scalars by name; reading one synchronises with the device, so do it rarely.
    """

    rgb: Float[Tensor, "M H W 3"] | None
    normal: Float[Tensor, "M H W 3"] | None
    disparity: Float[Tensor, "M H W 1"] | None
    logs: dict[str, Tensor] = field(default_factory=dict)

    def surrogate(self, views: Views) -> Float[Tensor, ""]:
        """A scalar whose gradient with respect to the pictures of `views` is this score gradient."""
        total = views.rgb.new_zeros(())
        for name in ("rgb", "normal", "disparity"):
            gradient = getattr(self, name)
            if gradient is not None:
                total = total + (getattr(views, name) * gradient).sum()
        return total


__all__ = [
    "SIDES",
    "Batch",
    "Cameras",
    "ColoredSurface",
    "Condition",
    "FieldSample",
    "Mesh",
    "Run",
    "ScoreGradient",
    "TextStates",
    "Texture",
    "Views",
]
