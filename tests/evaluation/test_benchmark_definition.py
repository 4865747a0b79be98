"""What the numbers of the miniature world's benchmark mean, against closed forms: its grid, pictures, measures, splits.

The published numbers stand for these definitions; a test that only compares the benchmark with itself would let them
drift.
"""

import hashlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from solids import sphere
from transformers import CLIPModel

from custom.shapeworld.measure import chamfer, sample_mesh, sample_solid
from custom.shapeworld.models import build_tokenizer, token_ids
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.splits import EVALUATION_SPLITS, SPLITS_FILE, load_splits
from custom.shapeworld.world import parse_caption
from triplaneturbo.evaluation import benchmark
from triplaneturbo.evaluation.benchmark import Judge, Measured, controls, generated_meshes, summarise
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
        pass  # no network

    def similarity(self, pictures, captions):
        self.pictures, self.captions = pictures, captions
        return torch.eye(len(captions))[:1].expand(len(pictures), -1)


@pytest.fixture
def judge():
    return Judge("train", Camera(), "cpu")


def exact_cube(shift=0.0):
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    return Mesh(corners * (BALL / 3**0.5) + torch.tensor([shift, 0.0, 0.0]), torch.tensor(CUBE_FACES))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# IoU


def test_a_shift_by_a_64th_of_the_world_costs_the_iou_one_layer_of_cells(judge):
    """The cube is 24 cells of 1/32 wide: 23 of its 25 layers remain shared. A coarser grid would not see the shift."""
    moved = judge.measure("a red cube", 0, exact_cube(shift=2 / 64))
    assert judge.iou(moved, "a red cube") == pytest.approx(23 / 25)
    assert judge.iou(judge.measure("a red cube", 0, exact_cube()), "a red cube") == 1


def test_the_worst_shape_of_stacks_is_that_of_their_upper_parts(judge):
    right, wrong = "a red cube on a blue sphere", "a red cone on a blue sphere"
    judge.position = {right: 0, wrong: 1}
    nothing = torch.zeros_like(judge.solid(wrong))
    found = [Measured(right, 0, judge.solid(right), (0,) * 4, 0.0), Measured(wrong, 0, nothing, (0,) * 4, 0.0)]
    numbers = summarise(judge, found)
    assert numbers["shape_iou"] == {"cube": 1.0, "cone": 0.0}
    assert (numbers["worst_shape"], numbers["worst_shape_iou"]) == ("cone", 0.0)


# R@1


def test_r_at_1_counts_every_view(judge):
    prompt = judge.bank[3]
    seen = Measured(prompt, 0, judge.solid(prompt), (3, 5, 3, 7), 0.0)
    assert judge.recall(seen, prompt) == 0.5
    assert judge.recall(seen, judge.bank[5]) == 0.25
    assert summarise(judge, [seen])["r_at_1"] == 0.5


def test_views_are_four_around_the_object_from_15_degrees_above(judge):
    elevation = math.radians(15)
    expected = [
        [1.55 * math.cos(elevation) * x, 1.55 * math.cos(elevation) * y, 1.55 * math.sin(elevation)]
        for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))
    ]
    torch.testing.assert_close(judge.cameras.positions, torch.tensor(expected), atol=1e-6, rtol=0)


def test_pictures_show_a_ball_as_large_as_its_distance_and_the_field_of_view_say(judge):
    """The tangent cone of a ball has the half angle asin(R / d); 32 pixels are tan(60 / 2 degrees). Behind is grey."""
    ball = sphere(BALL, resolution=48)
    judge.nearest(Mesh(ball.vertices, ball.faces, torch.ones_like(ball.vertices)))
    pictures = judge.scorer.pictures
    assert pictures.shape == (4, 3, 64, 64)
    assert (pictures[:, :, 0, 0] == 0.5).all()
    radius = 32 * math.tan(math.asin(BALL / 1.55)) / math.tan(math.radians(30))
    covered = (pictures[:, 0] - 0.5).sum(dim=(1, 2)) / 0.5
    torch.testing.assert_close(covered, torch.full((4,), math.pi * radius**2), rtol=0.01, atol=0)


def test_captions_are_chosen_among_all_singles_or_128_stacks(judge):
    judge.nearest(exact_cube())
    assert len(judge.scorer.captions) == len(set(judge.scorer.captions)) == 96
    stacks = Judge("unseen_compositions", Camera(), "cpu").bank
    assert len(stacks) == len(set(stacks)) == 128
    assert all(" on " in caption for caption in stacks)
    assert set(load_splits()["unseen_compositions"]) < set(stacks)


def test_captions_of_others_are_those_of_the_other_half(judge):
    """A cyclic shift by half of the prompts: nobody keeps a caption, and everybody's is used once."""
    prompts = judge.bank[:5]
    found = [Measured(p, 0, judge.solid(p), (i,) * 4, 0.0) for i, p in enumerate(prompts)]
    asked = []
    recall = judge.recall
    judge.recall = lambda measured, prompt: (asked.append((measured.prompt, prompt)), recall(measured, prompt))[1]
    assert controls(judge, found)["captions_of_others"]["r_at_1"] == 0
    assert asked[-5:] == [(p, prompts[(i + 2) % 5]) for i, p in enumerate(prompts)]


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


def test_chamfer_is_the_mean_of_both_directions():
    """A speck on the surface of a ball is at distance 0 of it, and points of the ball are 4/3 R from the speck."""
    pole = torch.tensor([[0.0, 0.0, BALL]])
    speck = Mesh(pole + 1e-4 * torch.eye(3), torch.tensor([[0, 1, 2]]))
    distance = chamfer(speck, parse_caption("a red sphere"), generator())
    deviation = BALL * (2 - 16 / 9) ** 0.5 / 2 / 4096**0.5
    assert abs(distance - 2 / 3 * BALL) < 4 * deviation


def test_chamfer_of_exact_surfaces_is_that_of_4096_random_points():
    """The nearest of n random points on an area A is sqrt(A / n) / 2 away: what sampling costs."""
    distance = chamfer(sphere(BALL, resolution=64), parse_caption("a red sphere"), generator())
    assert distance == pytest.approx(0.5 * math.sqrt(4 * math.pi * BALL**2 / 4096), rel=0.02)


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


def test_samples_of_a_solid_are_uniform_over_its_area():
    """On a cylinder of radius 0.72 and height 2, the caps have r / (r + h) of the area."""
    points = sample_solid(parse_caption("a red cylinder"), 20_000, generator())
    scale = BALL / math.hypot(0.72, 1)
    caps = (points[:, 2].abs() - scale).abs() < 1e-5
    share = 0.72 / (0.72 + 2)
    assert caps.float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5 + 0.005)


# Splits and runs


def test_the_splits_are_the_published_ones():
    """Frozen: the published numbers are of these captions."""
    captions = json.dumps(load_splits(), sort_keys=True).encode()
    published = "9012c942b33ee5d204f669cc86c28755a3ef322ae7523d2ec8be7ec0a8a5a60e"
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
    assert EVALUATION_SPLITS == ("train", "unseen_pairs", "novel_pairs", "unseen_compositions")


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
    found = list(generated_meshes(Pipeline(), prompts, (0, 7)))
    assert [(p, seed) for p, seed, _ in found] == [(p, seed) for seed in (0, 7) for p in prompts]
    made_from = [tuple(mesh.vertices[0, :2].tolist()) for *_, mesh in found]
    assert made_from == [(i, seed) for seed in (0, 7) for i in range(11)]
