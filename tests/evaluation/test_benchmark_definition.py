"""What the numbers of the miniature world's benchmark mean, against closed forms: its grid, pictures, measures, splits.

The published numbers stand for these definitions; a test that only compares the benchmark with itself would let them
drift.
"""

import dataclasses
import hashlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from solids import sphere
from transformers import CLIPModel

from custom.shapeworld.measure import chamfer, iou, sample_mesh, sample_solid
from custom.shapeworld.models import build_tokenizer, token_ids
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.splits import EVALUATION_SPLITS, SPLITS_FILE, load_splits
from custom.shapeworld.world import parse_caption, placements
from triplaneturbo.evaluation import benchmark
from triplaneturbo.evaluation.benchmark import shape_ious
from triplaneturbo.evaluation.controls import captions_of_others
from triplaneturbo.evaluation.judge import Judge, Measured
from triplaneturbo.evaluation.measures import Numbers, silhouette_iou
from triplaneturbo.evaluation.sources import Student
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline
from triplaneturbo.scenes import FieldScene, HashGridField
from triplaneturbo.types import Mesh

BALL = 0.65  # radius that every solid fills
CUBE_FACES = [
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
]  # fmt: skip


class Camera(Scorer):
    """In the scorer's place: keeps the pictures that it is shown, and always prefers the first caption."""

    def __init__(self):
        self.asked = []

    def similarity(self, pictures, captions):
        self.asked.append(pictures)
        self.captions = captions
        return torch.eye(len(captions))[:1].expand(len(pictures), -1)


@pytest.fixture
def judge():
    return Judge(Camera(), "cpu")


def exact_cube(shift=0.0):
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    return Mesh(corners * (BALL / 3**0.5) + torch.tensor([shift, 0.0, 0.0]), torch.tensor(CUBE_FACES))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# IoU


def test_a_shift_by_a_64th_of_the_world_costs_the_iou_one_layer_of_cells(judge):
    """The cube is 24 cells of 1/32 wide: 23 of its 25 layers remain shared. A coarser grid would not see the shift."""
    moved = judge.measure("a red cube", 0, exact_cube(shift=2 / 64))
    assert moved.numbers.iou == pytest.approx(23 / 25)
    assert judge.measure("a red cube", 0, exact_cube()).numbers.iou == 1


def found(prompt, nearest=(0,) * 4, nearest_object=0, iou=0.0):
    """A mesh of which only these numbers matter."""
    numbers = Numbers(iou=iou, silhouette_iou=0.0, psnr=0.0, r_at_1=0.0, r_at_1_object=0.0)
    nothing = torch.zeros(64**3, dtype=torch.bool), torch.zeros(4, 128, 128, dtype=torch.bool)
    pictures = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    return Measured(prompt, 0, 0, numbers, *nothing, pictures, nearest, nearest_object)


def test_the_worst_shape_of_stacks_is_that_of_their_upper_parts():
    right, wrong = "a red cube on a blue sphere", "a red cone on a blue sphere"
    assert shape_ious([found(right, iou=1.0), found(wrong)]) == {"cube": 1.0, "cone": 0.0}


# R@1


def test_r_at_1_counts_every_view_and_r_at_1_of_the_object_the_sum_of_all(judge):
    prompt, other = judge.bank[3], judge.bank[5]
    seen = dataclasses.replace(judge.truth(prompt), nearest=(3, 5, 3, 7), nearest_object=5)
    numbers = judge.compare(seen, prompt), judge.compare(seen, other)
    assert [(n.r_at_1, n.r_at_1_object) for n in numbers] == [(0.5, 0.0), (0.25, 1.0)]
    judge.scorer.similarity = lambda pictures, captions: torch.tensor([[3.0, 0, 2], [0, 3, 2], [3, 0, 2], [0, 3, 2]])
    nearest, of_the_object = judge._nearest(torch.zeros(4, 64, 64, 3))
    assert (nearest, of_the_object) == ((0, 1, 0, 1), 2)


def test_views_are_four_around_the_object_from_25_degrees_above(judge):
    elevation, half = math.radians(25), 0.5**0.5
    expected = [
        [1.55 * math.cos(elevation) * x, 1.55 * math.cos(elevation) * y, 1.55 * math.sin(elevation)]
        for x, y in ((half, half), (-half, half), (-half, -half), (half, -half))
    ]
    torch.testing.assert_close(judge.cameras.positions, torch.tensor(expected), atol=1e-6, rtol=0)


def test_pictures_show_a_ball_as_large_as_its_distance_and_the_field_of_view_say(judge):
    """The tangent cone of a ball has the half angle asin(R / d); 32 pixels are tan(60 / 2 degrees). Behind is grey."""
    ball = sphere(BALL, resolution=48)
    judge.measure("a red sphere", 0, Mesh(ball.vertices, ball.faces, torch.ones_like(ball.vertices)))
    pictures = judge.scorer.asked[0]
    assert pictures.shape == (4, 3, 64, 64)
    assert (pictures[:, :, 0, 0] == 0.5).all()
    radius = 32 * math.tan(math.asin(BALL / 1.55)) / math.tan(math.radians(30))
    covered = (pictures[:, 0] - 0.5).sum(dim=(1, 2)) / 0.5
    torch.testing.assert_close(covered, torch.full((4,), math.pi * radius**2), rtol=0.01, atol=0)


def test_captions_are_chosen_among_the_whole_bank(judge):
    judge.measure("a red cube", 0, exact_cube())
    captions = judge.scorer.captions
    assert len(captions) == len(set(captions)) == 10_000
    assert tuple(captions) == load_splits()["bank"] == judge.bank
    for split in EVALUATION_SPLITS:
        assert set(load_splits()[split]) < set(captions)


def test_captions_of_others_are_all_wrong_ones(judge):
    """Three captions, six pairs of a mesh and a wrong one: two views of the first mesh show the second caption."""
    prompts = judge.bank[:3]
    cells, silhouettes = ([getattr(judge.truth(p), name) for p in prompts] for name in ("inside", "sight"))
    meshes = [
        dataclasses.replace(
            found(p, nearest=(i,) * 4, nearest_object=i), inside=cells[i], covered=silhouettes[i].covered
        )
        for i, p in enumerate(prompts)
    ]
    meshes[0] = dataclasses.replace(meshes[0], nearest=(0, 1, 1, 9), nearest_object=2)
    numbers = captions_of_others(judge, meshes)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    assert numbers["iou"] == pytest.approx(sum(iou(cells[i], cells[j]).item() for i, j in pairs) / 6)
    shapes = [silhouette_iou(silhouettes[i].covered, silhouettes[j].covered) for i, j in pairs]
    assert numbers["silhouette_iou"] == pytest.approx(sum(shapes) / 6)
    assert numbers["r_at_1"] == pytest.approx(0.5 / 6)
    assert numbers["r_at_1_object"] == pytest.approx(1 / 6)
    assert set(captions_of_others(judge, meshes[:1]).values()) == {None}


# The scorer


class Clip(CLIPModel):
    """A model that keeps what it is shown; its embeddings are orthogonal, in order."""

    device = torch.device("cpu")

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.visual_projection = self.text_projection = torch.nn.Identity()

    def vision_model(self, pixel_values):
        self.pixels = pixel_values
        return SimpleNamespace(pooler_output=2 * torch.eye(8)[: len(pixel_values)])

    def text_model(self, input_ids):
        self.ids = input_ids
        return SimpleNamespace(pooler_output=3 * torch.eye(8)[: len(input_ids)])


def test_the_scorer_sees_64_pixels_between_minus_one_and_one():
    """Of every four columns one is white: the resized picture is 2 / 4 - 1, whichever columns a pixel falls on."""
    scorer = Scorer(Clip(), build_tokenizer())
    stripes = torch.zeros(1, 3, 256, 256)
    stripes[..., ::4] = 1
    captions = ["a red cube", "a blue cone"]
    similarity = scorer.similarity(torch.cat([stripes, torch.ones_like(stripes)]), captions)
    pixels = scorer.model.pixels
    assert pixels.shape == (2, 3, 64, 64)
    torch.testing.assert_close(pixels[0, :, 8:-8, 8:-8], torch.full((3, 48, 48), -0.5))
    torch.testing.assert_close(pixels[1], torch.ones(3, 64, 64))
    assert torch.equal(scorer.model.ids, token_ids(scorer.tokenizer, captions))
    assert torch.equal(similarity, torch.eye(2))


# Chamfer


def distance_from_ball(mesh):
    draws = generator()
    points = sample_mesh(mesh, 4096, draws)
    return chamfer(points, sample_solid(parse_caption("a red sphere"), 4096, draws))


def test_chamfer_is_the_mean_of_both_directions():
    """A speck on the surface of a ball is at distance 0 of it, and points of the ball are 4/3 R from the speck."""
    pole = torch.tensor([[0.0, 0.0, BALL]])
    speck = Mesh(pole + 1e-4 * torch.eye(3), torch.tensor([[0, 1, 2]]))
    distance = distance_from_ball(speck)
    deviation = BALL * (2 - 16 / 9) ** 0.5 / 2 / 4096**0.5
    assert abs(distance - 2 / 3 * BALL) < 4 * deviation


def test_chamfer_of_exact_surfaces_is_that_of_4096_random_points():
    """The nearest of n random points on an area A is sqrt(A / n) / 2 away: what sampling costs."""
    (placed,) = placements(parse_caption("a red sphere").form)
    radius = placed.radius * placed.stretch[0]
    distance = distance_from_ball(sphere(radius, resolution=64))
    assert distance == pytest.approx(0.5 * math.sqrt(4 * math.pi * radius**2 / 4096), rel=0.02)


def test_samples_of_a_mesh_are_uniform_over_its_area():
    """Two right triangles, one with nine times the area of the other, in planes z = 0 and z = 1."""
    small = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Mesh(torch.cat([small, 3 * small + torch.tensor([0.0, 0, 1])]), torch.arange(6).view(2, 3))
    n = 20_000
    points = sample_mesh(mesh, n, generator())
    large = points[:, 2] > 0.5
    assert large.float().mean().item() == pytest.approx(0.9, abs=4 * (0.9 * 0.1 / n) ** 0.5)
    middle = points[large, :2].mean(dim=0)
    torch.testing.assert_close(middle, torch.ones(2), atol=4 * (1 / 2 / n) ** 0.5, rtol=0)


@pytest.mark.parametrize(("proportion", "wide", "high"), [("", 1, 1), ("tall ", 0.6, 1), ("flat ", 1, 0.5)])
def test_samples_of_a_solid_are_uniform_over_its_area(proportion, wide, high):
    """On a cylinder of radius 0.72 and height 2, the caps have r / (r + h) of the area; stretched, too."""
    radius = 0.72 * wide
    points = sample_solid(parse_caption(f"a {proportion}red cylinder"), 20_000, generator())
    scale = BALL / math.hypot(radius, high)
    caps = (points[:, 2].abs() - scale * high).abs() < 1e-5
    share = radius / (radius + 2 * high)
    assert caps.float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5 + 0.005)


# Splits and runs


def test_the_splits_are_the_published_ones():
    """Frozen: the published numbers are of these captions."""
    captions = json.dumps(load_splits(), sort_keys=True).encode()
    published = "56320b4720ea4c1f659712421864bd35d50688ddc65d8d885bb92832162f1e48"
    assert hashlib.sha256(captions).hexdigest() == published, f"{SPLITS_FILE} has changed"


def test_by_default_all_prompts_of_all_splits_are_made_from_three_seeds(monkeypatch):
    asked = []

    def run(given):
        asked.append(given)
        raise SystemExit

    monkeypatch.setattr(benchmark, "run", run)
    with pytest.raises(SystemExit):
        benchmark.main(["--weights", "somewhere"])
    assert (tuple(asked[0].seeds), tuple(asked[0].splits), asked[0].limit) == ((0, 1, 2), EVALUATION_SPLITS, None)
    assert EVALUATION_SPLITS == (
        "train", "validation", "unseen_pairs", "novel_pairs", "unseen_orders", "unseen_relations", "three_parts"
    )  # fmt: skip


def test_every_prompt_is_generated_from_every_seed():
    field = HashGridField({"encoding": {"n_levels": 1, "log2_hashmap_size": 4}})

    class Pipeline(TextToMeshPipeline):
        def __init__(self):
            pass  # no network

        def generate(self, prompts, *, seed):
            return FieldScene(field, {"seed": torch.full((len(prompts), 1), float(seed))})

        def extract(self, prompts, scene):
            (prompt,) = prompts
            vertices = torch.tensor([[int(prompt.split()[1]), scene.tensors["seed"].item(), 0.0]])
            return [Mesh(vertices, torch.zeros(0, 3, dtype=torch.int64))]

    prompts = [f"prompt {i}" for i in range(11)]
    made = list(Student(Pipeline(), (0, 7)).meshes(prompts))
    assert [(p, seed) for p, seed, _ in made] == [(p, seed) for seed in (0, 7) for p in prompts]
    made_from = [tuple(mesh.vertices[0, :2].tolist()) for *_, mesh in made]
    assert made_from == [(i, seed) for seed in (0, 7) for i in range(11)]
