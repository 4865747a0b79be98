"""The kernels of marching cubes against their torch reference: the same meshes in the same order, and gradients."""

import pytest
import torch
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.ops.marching_cubes import marching_cubes_packed


def random(*shape, seed):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize(("pad", "deformed"), [(True, True), (False, True), (True, False)])
def test_kernels_give_the_mesh_of_the_reference(kind, pad, deformed):
    fields = random(3, 5, 6, 7, seed=0).to(kind)
    fields[1] = 1
    shifts = (0.3 * random(3, 5, 6, 7, 3, seed=1)).to(kind) if deformed else None
    results = []
    for backend in ("torch", BACKEND):
        leaves = [x.clone().requires_grad_() for x in (fields, shifts) if x is not None]
        vertices, faces, sizes = marching_cubes_packed(*leaves, level=0.4, pad=pad, backend=backend)
        weight = random(*vertices.shape, seed=2).to(kind)
        results.append((vertices, faces, sizes, torch.autograd.grad((vertices * weight).sum(), leaves)))
    (vertices, faces, sizes, gradients), (own_vertices, own_faces, own_sizes, own_gradients) = results
    assert len(faces) > 200
    assert sizes[1] == (0, 0)
    assert torch.equal(own_faces, faces)
    assert own_sizes == sizes
    tolerance = 1e-12 if kind == torch.float64 else 2e-6
    torch.testing.assert_close(own_vertices, vertices, rtol=0, atol=tolerance)
    for own, gradient in zip(own_gradients, gradients, strict=True):
        torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_field_without_a_sign_change_gives_an_empty_mesh(value):
    field = torch.full((1, 5, 5, 5), value, device=DEVICE, requires_grad=True)
    vertices, faces, sizes = marching_cubes_packed(field, pad=False, backend=BACKEND)
    assert (vertices.shape, faces.shape, sizes) == ((0, 3), (0, 3), [(0, 0)])
    vertices.sum().backward()
    assert not field.grad.any()


def test_what_is_not_a_number_is_outside():
    field = random(1, 5, 5, 5, seed=3).float()
    field[0, 2, 2, 2] = torch.nan
    meshes = [marching_cubes_packed(field, level=0.5, backend=backend) for backend in ("torch", BACKEND)]
    assert torch.equal(meshes[0][1], meshes[1][1])


if BACKEND == "triton":  # in the process of the next test

    def test_gradients_in_a_fixed_order_are_the_same_numbers():
        field, shift = random(1, 5, 5, 5, seed=4).requires_grad_(), random(1, 5, 5, 5, 3, seed=5).requires_grad_()

        def gradients():
            vertices, _, _ = marching_cubes_packed(field, shift, level=0.5, backend=BACKEND)
            return torch.autograd.grad(vertices.square().sum(), (field, shift))

        plain = gradients()
        torch.use_deterministic_algorithms(True)
        try:
            exact, again = gradients(), gradients()
        finally:
            torch.use_deterministic_algorithms(False)
        for expected, found, other in zip(plain, exact, again, strict=True):
            assert torch.equal(found, other)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_triton_kernels_pass_the_tests_of_this_file():
    assert "10 passed" in run_with_triton(__file__, "not triton")
