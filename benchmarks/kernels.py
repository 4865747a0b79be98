"""Every implementation of every operation on the same inputs: time, memory, and distance from torch's result.

    python -m benchmarks.kernels [--only rasterize] [--json results.json]

(As a module: in a script's own folder this file would pass for the package `kernels`, which transformers looks for.)
A row for each case of `CASES`, a column for each implementation that runs here. In a cell: the median in milliseconds,
(least - most), the peak of the device's memory in MiB, and the error. Sizes are those of training at full size; --tiny
makes them small, to try the program. Packages whose licences forbid commercial use take part: what they compute is
thrown away, but whether running them is allowed is yours to know; --without NAME leaves one out.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Timing, machine, measure, require_new, write_json
from triplaneturbo.attention import attend
from triplaneturbo.cameras import ray_directions, turntable
from triplaneturbo.errors import USER_ERRORS, ConfigError
from triplaneturbo.ops.backends import PLACES, PlaceName, choose
from triplaneturbo.ops.group_norm import group_norm_silu
from triplaneturbo.ops.hashgrid import HashGrid
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.planes import sample_planes_with_jacobian
from triplaneturbo.ops.rasterize import Raster, antialias, interpolate, rasterize

# Of the hash grid of directions, and of the sphere that is drawn: the released background, and 92 000 faces at 160^3.
DIRECTIONS = (8, 2, 19, 4, 1.8114473285278132)
RADIUS = 0.62

Tensors = tuple[Tensor, ...]
# Given the name of an implementation: one execution.
Work = Callable[[str], Tensors]


@dataclass(frozen=True)
class Setting:
    """Where, and whether sizes are small."""

    device: torch.device
    tiny: bool

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def random(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """From U(0, 1), the same on every device."""
        return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device, dtype)


def largest_gap(found: Tensors, expected: Tensors) -> float:
    """The largest difference of an element, as a share of the largest element of its tensor."""
    gaps = [
        ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
        for a, b in zip(found, expected, strict=True)
    ]
    return max(gaps)


def other_faces(found: Tensors, expected: Tensors) -> float:
    """Share of the pixels that see another face: packages differ in how they round places of vertices."""
    return (found[0] != expected[0]).float().mean().item()


def mean_gap(found: Tensors, expected: Tensors) -> float:
    """Mean difference of elements as a share of their mean size: few pixels may differ much."""
    gaps = [((a - b).abs().mean() / b.abs().mean()).item() for a, b in zip(found, expected, strict=True)]
    return max(gaps)


@dataclass(frozen=True)
class Case:
    """What is measured. prepare: makes the inputs. error: how results are compared with torch's."""

    name: str
    place: PlaceName
    prepare: Callable[[Setting], Work]
    error: Callable[[Tensors, Tensors], float] = largest_gap


def with_gradients(work: Work, inputs: Sequence[Tensor]) -> Work:
    """The gradients of the sum of squares of `work`'s floating-point results."""

    def run(backend: str) -> Tensors:
        loss = sum(output.float().square().sum() for output in work(backend) if output.is_floating_point())
        return torch.autograd.grad(loss, list(inputs))

    return run


def plane_lookup(setting: Setting, backward: bool) -> Work:
    """Three planes of shape features at the samples of a picture of rays: 128 x 128 x 64."""
    side, points = setting.size(256, 16), setting.size(1 << 20, 1000)
    planes = setting.random(1, 3, 32, side, side).requires_grad_(backward)
    coords = (setting.random(1, 3, points, 2, seed=1) * 2 - 1).requires_grad_(backward)

    def work(backend: str) -> Tensors:
        return sample_planes_with_jacobian(planes, coords, backend=backend)

    return with_gradients(work, [planes, coords]) if backward else work


def ball(setting: Setting) -> Tensor:
    """A grid of signed distances of a sphere."""
    line = torch.linspace(-1, 1, setting.size(160, 20), device=setting.device)
    points = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack(points).norm(dim=0) - RADIUS


def cubes(setting: Setting, backward: bool) -> Work:
    """Vertices of the sphere's mesh."""
    sdf = ball(setting).requires_grad_(backward)

    def work(backend: str) -> Tensors:
        return marching_cubes(sdf, backend=backend)[:1]

    return with_gradients(work, [sdf]) if backward else work


def sorted_gap(found: Tensors, expected: Tensors) -> float:
    """`largest_gap` of the coordinates, each sorted: implementations order vertices as they like."""
    return largest_gap(*([points.sort(0).values for points in each] for each in (found, expected)))


def rasterization(setting: Setting, upto: str) -> Work:
    """The sphere from four sides: face indices, or an antialiased picture of six attributes, or its gradient."""
    size = setting.size(512, 24)
    vertices, faces = marching_cubes(ball(setting), backend="torch")
    vertices = (vertices / setting.size(160, 20) * 2 - 1).contiguous()
    x, y, z = vertices.unbind(1)
    ends = [(x, z, y), (y, z, -x), (-x, z, -y), (-y, z, x)]
    clip = torch.stack([torch.stack([2 * a, 2 * b, 2.1 - c - 0.2, 2.1 - c], 1) for a, b, c in ends])
    attributes = torch.cat([vertices, setting.random(len(vertices), 3)], 1)
    inputs = [clip.requires_grad_(upto == "backward"), attributes.requires_grad_(upto == "backward")]

    def see(backend: str) -> Raster:
        return rasterize(clip, faces, size, size, backend=backend)

    def work(backend: str) -> Tensors:
        raster = see(backend)
        return (antialias(interpolate(attributes, raster, faces), raster, clip, faces),)

    if upto == "raster":
        return lambda backend: (see(backend).face_index,)
    return with_gradients(work, inputs) if upto == "backward" else work


def directions(setting: Setting, backward: bool) -> Work:
    """The background's encoding of the directions of four pictures of 512^2: neighbours lie next to each other."""
    grid = HashGrid(*DIRECTIONS, torch.Generator().manual_seed(0)).to(setting.device)
    cameras = turntable(4, elevation_deg=15.0, distance=2.2, fovy_deg=50.0).to(setting.device)
    side = setting.size(512, 16)
    points = ((ray_directions(cameras, side, side) + 1) / 2).view(-1, 3)

    def work(backend: str) -> Tensors:
        with torch.set_grad_enabled(backward):
            return (grid(points, backend=backend),)

    return with_gradients(work, [grid.params]) if backward else work


def norm(setting: Setting, backward: bool) -> Work:
    """Norm, shift and SiLU at the largest size of a picture of 512^2 in an encoder, in bfloat16 on CUDA."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    side, channels = setting.size(512, 12), setting.size(128, 32)
    x = setting.random(1, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = (setting.random(channels, seed=i, dtype=dtype) for i in (1, 2))
    shift = setting.random(1, channels, seed=3, dtype=dtype)
    x.requires_grad_(backward)

    def work(backend: str) -> Tensors:
        return (group_norm_silu(x, 32, weight, bias, 1e-6, shift=shift, silu=True, backend=backend),)

    return with_gradients(work, [x]) if backward else work


def attention(setting: Setting, shape: tuple[int, int, int, int], backward: bool) -> Work:
    """shape: pictures or prompts, heads, queries, keys; heads are 64 wide, in bfloat16 on CUDA."""
    batch, heads, queries, keys = (1, 2, 24, 24) if setting.tiny else shape
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    lengths = (queries, keys, keys)
    given = [setting.random(batch, heads, n, 64, seed=i, dtype=dtype) for i, n in enumerate(lengths)]
    given = [x.requires_grad_(backward) for x in given]

    def work(backend: str) -> Tensors:
        return (attend(*given, scale=0.125, backend=backend),)

    return with_gradients(work, given) if backward else work


# One prompt in training: six planes joined in the generator; four views, joined or apart, in a teacher, twice each.
ATTENTION = {
    "planes at 32": (1, 5, 6144, 6144),
    "planes at 16": (1, 10, 1536, 1536),
    "views at 32 joined": (2, 5, 4096, 4096),
    "views at 64": (8, 5, 4096, 4096),
    "text at 64": (8, 5, 4096, 77),
}

CASES = [
    Case("norm/forward", "norm", lambda s: norm(s, False)),
    Case("norm/forward+backward", "norm", lambda s: norm(s, True)),
    Case("planes/forward", "planes", lambda s: plane_lookup(s, False)),
    Case("planes/forward+backward", "planes", lambda s: plane_lookup(s, True)),
    Case("marching_cubes/forward", "isosurface", lambda s: cubes(s, False), sorted_gap),
    Case("marching_cubes/forward+backward", "isosurface", lambda s: cubes(s, True)),
    Case("rasterize/forward", "rasterizer", lambda s: rasterization(s, "raster"), other_faces),
    Case("rasterize+interpolate+antialias/forward", "rasterizer", lambda s: rasterization(s, "picture"), mean_gap),
    Case(
        "rasterize+interpolate+antialias/forward+backward",
        "rasterizer",
        lambda s: rasterization(s, "backward"),
        mean_gap,
    ),
    Case("hashgrid/forward", "hashgrid", lambda s: directions(s, False)),
    Case("hashgrid/forward+backward", "hashgrid", lambda s: directions(s, True)),
    *(
        Case(f"attention, {n}/forward", "attention", lambda s, n=n: attention(s, ATTENTION[n], False))
        for n in ATTENTION
    ),
    *(
        Case(f"attention, {n}/forward+backward", "attention", lambda s, n=n: attention(s, ATTENTION[n], True))
        for n in ("planes at 32", "planes at 16")
    ),
]


@dataclass(frozen=True)
class Result:
    """Of an implementation in a case."""

    timing: Timing
    error: float

    def cell(self) -> str:
        median, least, most = (1000 * x for x in (self.timing.median_s, self.timing.min_s, self.timing.max_s))
        memory = f"  {self.timing.peak_bytes / 2**20:.0f} MiB" if self.timing.peak_bytes else ""
        return f"{median:.3f} ({least:.3f} - {most:.3f}){memory}  {self.error:.1e}"


def run(case: Case, names: Sequence[str], setting: Setting, repeats: int) -> dict[str, Result]:
    """Measure `case` with every implementation in `names`, "torch" the first."""
    work = case.prepare(setting)
    expected = tuple(tensor.detach() for tensor in work("torch"))
    results = {}
    for name in names:
        error = case.error(tuple(tensor.detach() for tensor in work(name)), expected)
        results[name] = Result(measure(lambda name=name: work(name), warmup=3, repeats=repeats), error)
    return results


def runnable(place: PlaceName, device: torch.device, without: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the implementations of an operation that run on `device`, and why the others do not."""
    names, problems = ["torch"], []
    for name in filter(None, ("triton", PLACES[place].package)):
        if name in without:
            continue
        try:
            names.append(choose(place, device, asked=name).name)
        except ConfigError as error:
            problems.append(str(error))
    return names, problems


def print_table(results: dict[str, dict[str, Result]]) -> None:
    """Rows of cases, columns of implementations."""
    columns = list(dict.fromkeys(name for row in results.values() for name in row))
    rows = [["ms (least - most)  peak  error", *columns]]
    rows += [[case, *(row[name].cell() if name in row else "" for name in columns)] for case, row in results.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time of every implementation of every operation.")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="implementations to leave out")
    parser.add_argument(
        "--repeats", type=int, default=20, help="executions that are measured, after three that are not"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the program")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a new file for the numbers")
    given = parser.parse_args(arguments)
    setting = Setting(torch.device("cuda" if torch.cuda.is_available() else "cpu"), given.tiny)
    try:
        require_new(given.json)
        cases = [case for case in CASES if given.only in case.name]
        if not cases:
            raise ConfigError(f"no case holds {given.only!r}; there are: {', '.join(case.name for case in CASES)}")
        chosen = {place: runnable(place, setting.device, given.without) for place in {case.place for case in cases}}
        results = {case.name: run(case, chosen[case.place][0], setting, given.repeats) for case in cases}
    except USER_ERRORS as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print_table(results)
    for problem in sorted({problem for _, problems in chosen.values() for problem in problems}):
        print(f"left out: {problem}")
    if given.json:
        flat = {f"{case}/{name}": result for case, row in results.items() for name, result in row.items()}
        write_json(
            given.json,
            {"tiny": given.tiny, "repeats": given.repeats, "only": given.only},
            {name: result.timing for name, result in flat.items()},
            errors={name: result.error for name, result in flat.items()},
            stage_peak_bytes={name: result.timing.peak_bytes for name, result in flat.items()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
