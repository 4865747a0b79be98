"""Kernels of meshes and of the hash grid against their torch references, at the sizes of a training step, on CUDA.

    python benchmarks/mesh_kernels.py [--resolution 160] [--size 512] [--views 4]

For each: the largest differences of results and gradients (relative to the largest number), how often the host waits
for the device, and the median time in ms, forward and with backward, torch and Triton. Exits with 1 if a face differs,
or any number by more than 1e-3 of the largest.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triplaneturbo.cameras import ray_directions, turntable, world_to_clip
from triplaneturbo.ops.hashgrid import HashGrid
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.rasterize import antialias, interpolate, rasterize

_TOLERANCE = 1e-3
Backend = str
# What it computes, and what it is differentiated with respect to.
Subject = tuple[Callable[[Backend], Sequence[Tensor]], Sequence[Tensor]]


def bumpy_ball(resolution: int) -> Tensor:
    """A signed field whose surface has about as many faces as an object."""
    line = torch.linspace(-1, 1, resolution, device="cuda")
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    return grid.norm(dim=-1) - 0.6 + 0.03 * (12 * grid).sin().sum(-1)


def median_ms(work: Callable[[], object], repeats: int = 20) -> float:
    """Of the time between CUDA events, after three more runs."""
    times = []
    for number in range(repeats + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def waits(work: Callable[[], object]) -> int:
    """How often the host waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def difference(found: Tensor, expected: Tensor) -> float:
    """Share of numbers that differ, if these are whole, else the largest difference in units of the largest number."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((found != expected).float().mean())
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def compare(name: str, subject: Subject) -> bool:
    """Print a line for each backend; whether they agree."""
    forward, leaves = subject
    found: dict[Backend, list[Tensor]] = {}
    for backend in ("torch", "triton"):

        def both(backend: Backend = backend) -> list[Tensor]:
            results = [x for x in forward(backend) if x.requires_grad]
            generator = torch.Generator("cuda").manual_seed(0)
            weights = [torch.randn(x.shape, device="cuda", generator=generator) for x in results]
            return list(torch.autograd.grad(results, leaves, weights))

        found[backend] = [x.detach() for x in forward(backend)] + both()
        times = median_ms(lambda backend=backend: forward(backend)), median_ms(both)
        stops = waits(lambda backend=backend: forward(backend)), waits(both)
        print(f"{name:28} {backend:7} {times[0]:8.3f} {times[1]:8.3f} ms, host waits {stops[0]:3} {stops[1]:3}")
    gaps = [difference(a, b) for a, b in zip(found["triton"], found["torch"], strict=True)]
    whole = [not x.is_floating_point() for x in found["torch"]]
    agrees = all(gap == 0 if exact else gap < _TOLERANCE for gap, exact in zip(gaps, whole, strict=True))
    print(f"{name:28} {'agrees' if agrees else 'DIFFERS'}: {' '.join(f'{gap:.1e}' for gap in gaps)}")
    return agrees


def subjects(resolution: int, size: int, views: int) -> dict[str, Subject]:
    """By name."""
    field = bumpy_ball(resolution).requires_grad_()
    shift = torch.zeros(*field.shape, 3, device="cuda", requires_grad=True)
    with torch.no_grad():
        vertices, faces = marching_cubes(field)
        vertices = vertices * (2 / (resolution - 1)) - 1
    cameras = turntable(views, elevation_deg=15, distance=2.2, fovy_deg=50).to("cuda")
    matrices = world_to_clip(cameras, 1.0)
    homogeneous = torch.cat([vertices, torch.ones_like(vertices[:, :1])], 1)
    clip = torch.einsum("vij,nj->vni", matrices, homogeneous).contiguous().requires_grad_()
    attributes = torch.cat([vertices, vertices], 1).requires_grad_()
    grid = HashGrid(8, 2, 19, 4, 1.8114473285278132).to("cuda")
    rays = ((ray_directions(cameras, size, size, focal_height=64) + 1) / 2).view(-1, 3)
    print(f"{len(vertices)} vertices, {len(faces)} faces, {views} x {size}^2 pixels")

    def seen(backend: Backend) -> tuple[Tensor, ...]:
        raster = rasterize(clip, faces, size, size, backend=backend)
        return raster.face_index, raster.barycentric, raster.depth

    def smooth(backend: Backend) -> tuple[Tensor, ...]:
        raster = rasterize(clip, faces, size, size, backend=backend)
        values = interpolate(attributes, raster, faces, backend=backend)
        return (antialias(values, raster, clip, faces, backend=backend),)

    # Large triangles: a few thousand vertices, every third makes a face.
    large = torch.randn(views, 999, 4, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) * 0.5
    large[..., 3] = 1
    large.requires_grad_()
    apart = torch.arange(999, device="cuda").view(-1, 3)

    def large_faces(backend: Backend) -> tuple[Tensor, ...]:
        raster = rasterize(large, apart, size, size, backend=backend)
        return raster.face_index, antialias(raster.depth.unsqueeze(-1), raster, large, apart, backend=backend)

    return {
        "marching cubes": (lambda backend: marching_cubes(field, backend=backend), (field,)),
        "marching cubes, deformed": (lambda backend: marching_cubes(field, shift, backend=backend), (field, shift)),
        "rasterise": (seen, (clip,)),
        "+ interpolate + antialias": (smooth, (clip, attributes)),
        "333 large faces": (large_faces, (large,)),
        "hash grid, rays": (lambda backend: (grid(rays, backend=backend),), (grid.params,)),
        "hash grid, one ray": (
            lambda backend: (grid(rays[:1].expand(len(rays), -1).contiguous(), backend=backend),),
            (grid.params,),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=160, help="grid points along an edge")
    parser.add_argument("--size", type=int, default=512, help="pixels along an edge")
    parser.add_argument("--views", type=int, default=4, help="pictures of the mesh")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("a CUDA device is needed: the kernels are compared on one; the tests in tests/ops interpret them")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    compared = [compare(name, subject) for name, subject in subjects(**vars(arguments)).items()]
    sys.exit(0 if all(compared) else 1)


if __name__ == "__main__":
    main()
