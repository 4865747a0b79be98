"""Looks at meshes and exact solids in the same way, and compares them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.draws import keyed_generator
from triplaneturbo.exporters.render import Sight, look_at
from triplaneturbo.ops.mesh import Topology, topology
from triplaneturbo.pictures import to_bytes
from triplaneturbo.types import Mesh

from .measures import Numbers, color_error, genus_right, normal_error, psnr, silhouette_iou, two_faces
from .world import (
    EXACTLY,
    GRID,
    Scorer,
    chamfer,
    exact_mesh,
    iou,
    mesh_occupancy,
    parse_caption,
    render,
    retrieval_bank,
    sample_mesh,
    sample_solid,
    solid_occupancy,
)

AZIMUTHS = (45.0, 135.0, 225.0, 315.0)  # from none of them does what stands beside hide behind the other part
DISTANCE, FOVY_DEG, ELEVATION_DEG, BACKGROUND, VIEW_SIZE = 1.55, 60.0, 25.0, 0.5, 64
SUPERSAMPLE = 2  # rays a pixel of the pictures and axis; silhouettes, normals and colours are compared ray by ray
CHAMFER_POINTS = 4096
EXACT_RESOLUTION = 128  # points an edge of the grid on which exact solids become meshes
NO_MESH = -1


@dataclass(frozen=True)
class Seen:
    """What a mesh or an exact solid looks like and fills.

    inside: grid cells. sight: rays. pictures: their averages, on grey. points: a sample of the surface, None if there
    is none. nearest, nearest_object: numbers of the captions of the bank that the scorer sees in each view and in all.
    """

    inside: Bool[Tensor, " P"]
    sight: Sight
    pictures: Float[Tensor, "V H W 3"]
    points: Float[Tensor, "N 3"] | None
    shape: Topology
    faces: int
    nearest: tuple[int, ...]
    nearest_object: int


@dataclass(frozen=True)
class Measured:
    """What is kept of one mesh: its numbers for its own caption, and what is compared with all other captions.

    seed: of the noise. training: number of the training, or of the folder, that the mesh is of.
    """

    prompt: str
    seed: int
    training: int
    numbers: Numbers
    inside: Bool[Tensor, " P"]
    covered: Bool[Tensor, "V H W"]
    pictures: UInt8[Tensor, "V h w 3"]
    nearest: tuple[int, ...]
    nearest_object: int


class Judge:
    """Measures meshes against exact solids.

    bank: the captions that R@1 chooses from.
    """

    def __init__(self, scorer: Scorer, device: str | torch.device, bank: Sequence[str] | None = None) -> None:
        self.scorer = scorer
        self.device = device
        self.bank = retrieval_bank() if bank is None else bank
        self.position = {caption: i for i, caption in enumerate(self.bank)}
        n = len(AZIMUTHS)
        fixed = (torch.full((n,), value) for value in (DISTANCE, FOVY_DEG))
        azimuths = torch.tensor(AZIMUTHS)
        self.cameras = orbit_cameras(torch.full((n,), ELEVATION_DEG), azimuths, *fixed, n_view=n, relative=False)
        self._truths: dict[str, Seen] = {}

    def see(self, mesh: Mesh | None, generator: torch.Generator) -> Seen:
        """What there is of a mesh; None: there is no mesh. generator: of the sample of its surface."""
        fine = VIEW_SIZE * SUPERSAMPLE
        if mesh is None or len(mesh.faces) == 0:
            nothing = torch.zeros(GRID**3, dtype=torch.bool, device=self.device)
            empty = torch.zeros(len(AZIMUTHS), fine, fine, 3, device=self.device)
            sight = Sight(empty, empty, empty[..., 0].bool())
            grey = sight.pictures(BACKGROUND, pool=SUPERSAMPLE)
            return Seen(nothing, sight, grey, None, Topology(False, 0, None), 0, (NO_MESH,) * len(AZIMUTHS), NO_MESH)
        sight = look_at(mesh, self.cameras, fine)
        pictures = sight.pictures(BACKGROUND, pool=SUPERSAMPLE)
        return Seen(
            mesh_occupancy(mesh),
            sight,
            pictures,
            sample_mesh(mesh, CHAMFER_POINTS, generator),
            topology(mesh.vertices, mesh.faces),
            len(mesh.faces),
            *self._nearest(pictures),
        )

    def truth(self, prompt: str) -> Seen:
        """The exact solid of a caption. Its handles and pieces are those of its mesh at EXACT_RESOLUTION."""
        if prompt not in self._truths:
            solid, fine = parse_caption(prompt), VIEW_SIZE * SUPERSAMPLE
            cameras = self.cameras.to(self.device)
            views = render([solid], cameras, fine, supersample=1, background=0.0, precision=EXACTLY)
            sight = Sight(views.rgb, views.extras["comp_normal"], views.opacity[..., 0] > 0.5)
            pictures = sight.pictures(BACKGROUND, pool=SUPERSAMPLE)
            mesh = exact_mesh(solid, EXACT_RESOLUTION, self.device)
            self._truths[prompt] = Seen(
                solid_occupancy([solid], device=self.device)[0],
                sight,
                pictures,
                self.sample(prompt, "truth"),
                topology(mesh.vertices, mesh.faces),
                len(mesh.faces),
                *self._nearest(pictures),
            )
        return self._truths[prompt]

    def sample(self, prompt: str, name: str) -> Float[Tensor, "N 3"]:
        """Points of the exact surface; another `name` gives other points."""
        generator = keyed_generator("surface", name, prompt, device=self.device)
        return sample_solid(parse_caption(prompt), CHAMFER_POINTS, generator)

    def measure(self, prompt: str, seed: int, mesh: Mesh | None, training: int = 0) -> Measured:
        """`mesh`, made from `prompt`, against the exact solid; None: there is no mesh."""
        seen = self.see(mesh, keyed_generator(seed, "surface", prompt, device=self.device))
        return self.measured(seen, prompt, seed, training)

    def measured(self, seen: Seen, prompt: str, seed: int = 0, training: int = 0) -> Measured:
        """The same of what was already looked at."""
        numbers, pictures = self.compare(seen, prompt), to_bytes(seen.pictures)
        kept = (seen.inside, seen.sight.covered, pictures, seen.nearest, seen.nearest_object)
        return Measured(prompt, seed, training, numbers, *kept)

    def exact(self, prompt: str) -> Measured:
        """The solid of `prompt` itself, with another sample of its surface: the best that can be measured."""
        return self.measured(replace(self.truth(prompt), points=self.sample(prompt, "floor")), prompt)

    def compare(self, seen: Seen, prompt: str) -> Numbers:
        """What was seen against the exact solid of any caption."""
        true = self.truth(prompt)
        sides = two_faces(seen.pictures, true.pictures) if seen.faces else None
        own = self.position[prompt]
        return Numbers(
            iou=iou(seen.inside, true.inside).item(),
            chamfer=None if seen.points is None or true.points is None else chamfer(seen.points, true.points),
            silhouette_iou=silhouette_iou(seen.sight.covered, true.sight.covered),
            psnr=psnr(seen.pictures, true.pictures),
            normal_error=normal_error(seen.sight, true.sight),
            color_error=color_error(seen.sight, true.sight),
            r_at_1=sum(n == own for n in seen.nearest) / len(seen.nearest),
            r_at_1_object=float(seen.nearest_object == own),
            faces_right=sides[0] if sides else None,
            janus=sides[1] if sides else None,
            watertight=float(seen.shape.watertight),
            genus_right=float(genus_right(seen.shape, true.shape)),
            faces=float(seen.faces),
        )

    def _nearest(self, pictures: Float[Tensor, "V H W 3"]) -> tuple[tuple[int, ...], int]:
        """The caption of the bank that each view looks like, and the one that all views together look like."""
        similarity = self.scorer.similarity(pictures.permute(0, 3, 1, 2), self.bank)
        return tuple(similarity.argmax(dim=1).tolist()), int(similarity.sum(dim=0).argmax())
