"""Meshes against linear algebra, matrix exponentials and second-order perturbation theory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kpt_lab.frontier.photonic import (
    Noise,
    PhaseError,
    SplitterError,
    decompose,
    disturbed,
    fidelity,
    figures,
    random_unitary,
    svd,
)
from kpt_lab.frontier.photonic.mesh import placed

SCHEMES = ("clements", "reck")
X = torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128)


def by_exponentials(mesh) -> torch.Tensor:
    """The mesh's matrix multiplied out one interferometer at a time, from the definition exp(i (pi/4 + e) X)."""
    total = torch.eye(mesh.modes, dtype=torch.complex128)
    for k, m in enumerate(placed(mesh.scheme, mesh.modes)):
        block = torch.eye(2, dtype=torch.complex128)
        errors = (0.0, 0.0) if mesh.splitters is None else mesh.splitters[k].tolist()
        for phase, e in zip((mesh.phi[k], mesh.theta[k]), errors, strict=True):
            block = (
                torch.linalg.matrix_exp(1j * (math.pi / 4 + e) * X)
                @ torch.diag(torch.stack([torch.exp(1j * phase), torch.ones((), dtype=torch.complex128)]))
                @ block
            )
        whole = torch.eye(mesh.modes, dtype=torch.complex128)
        whole[m : m + 2, m : m + 2] = block
        total = whole @ total
    return torch.exp(1j * mesh.output)[:, None] * total


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("modes", [1, 2, 3, 5, 8, 17, 33, 64])
def test_a_unitary_comes_back_from_its_phases(scheme, modes):
    unitary = random_unitary(modes)
    mesh = decompose(unitary, scheme)
    assert (mesh.matrix() - unitary).abs().max() <= 1e-12
    assert mesh.interferometers == modes * (modes - 1) // 2
    assert sum(len(column.indices) for column in mesh.columns) == mesh.interferometers
    depth = {1: 0, 2: 1}.get(modes, modes if scheme == "clements" else 2 * modes - 3)
    assert len(mesh.columns) == depth


@pytest.mark.parametrize("scheme", SCHEMES)
def test_awkward_unitaries_and_batches_come_back(scheme):
    special = torch.stack([
        torch.eye(6, dtype=torch.complex128),
        torch.eye(6, dtype=torch.complex128).flip(0),
        -1j * torch.eye(6, dtype=torch.complex128).roll(1, 0),
        torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0].to(torch.complex128),
    ])  # fmt: skip
    for batch in (special, special.reshape(2, 2, 6, 6)):
        assert (decompose(batch, scheme).matrix() - batch).abs().max() <= 1e-12
    assert (decompose(special[3].real, scheme).matrix() - special[3]).abs().max() <= 1e-12


@pytest.mark.parametrize("scheme", SCHEMES)
def test_columns_and_splitters_agree_with_exponentials(scheme):
    mesh = disturbed(decompose(random_unitary(5), scheme), Noise(phase=PhaseError(0.3), splitter=SplitterError(0.2)))
    assert (mesh.matrix() - by_exponentials(mesh)).abs().max() <= 1e-14
    identity = torch.eye(5, dtype=torch.complex128)
    assert (mesh.matrix().mH @ mesh.matrix() - identity).abs().max() <= 1e-14  # errors lose no light


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 2), (2, 7), (2, 3, 4, 6), (64, 33)])
def test_any_real_matrix_goes_through_two_meshes(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    made = svd(matrix)
    assert (made.matrix() - matrix).abs().max() <= 1e-12 * max(shape)
    assert made.gains.max() <= 1 + 1e-15  # attenuators don't amplify
    x = torch.randn(*shape[:-2], shape[-1], 3, dtype=torch.complex128)
    assert torch.allclose(made.scale[..., None, None] * made.propagate(x), matrix.to(x.dtype) @ x, rtol=0, atol=1e-11)


def test_a_matrix_of_rank_one_and_of_zeros():
    ones = torch.ones(4, 4, dtype=torch.float64)
    assert (svd(ones).matrix() - ones).abs().max() <= 1e-14
    assert svd(torch.zeros(3, 2)).matrix().abs().max() <= 1e-300


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_of_phases_splitters_and_light(scheme):
    mesh = decompose(random_unitary(4), scheme)
    light = torch.randn(4, 2, dtype=torch.complex128, requires_grad=True)
    parts = [p.clone().requires_grad_() for p in (mesh.theta, mesh.phi, mesh.output)]
    errors = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def power(theta, phi, output, splitters, light):
        field = replace(mesh, theta=theta, phi=phi, output=output, splitters=splitters).propagate(light)
        return field.real + 2 * field.imag

    assert torch.autograd.gradcheck(power, (*parts, errors, light))


@pytest.mark.parametrize("modes", [32])
@pytest.mark.parametrize(("noise", "rate"), [(Noise(splitter=SplitterError(0.05)), 2), (Noise(phase=PhaseError(0.07)), 1)])
def test_fidelity_falls_as_perturbation_theory_says(modes, noise, rate):
    """The mean of 200 meshes; N = 256 is in benchmarks/recorded/photonic_fidelity.json, checked below."""
    std = (noise.splitter or noise.phase).std
    mesh = decompose(random_unitary(modes))
    many = replace(mesh, **{name: getattr(mesh, name).expand(200, -1) for name in ("theta", "phi", "output")})
    found = fidelity(disturbed(many, noise, torch.Generator().manual_seed(0)).matrix(), mesh.matrix())
    assert abs(found.mean().item() - math.exp(-rate * modes * std**2)) <= 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decompose(torch.ones(2, 3)), r"unitary has shape \(2, 3\); a square matrix"),
        (lambda: decompose(torch.ones(3, 3)), r"unitary is not unitary: U\*U differs from 1 by 3; any matrix goes through svd"),
        (lambda: decompose(torch.full((2, 2), math.nan)), "not unitary"),
        (lambda: decompose(torch.eye(2), "square"), "scheme is 'square'; accepted are clements, reck"),
        (lambda: svd(torch.tensor([[math.inf]])), "matrix holds NaN or infinity"),
        (lambda: svd(torch.ones(3)), r"matrix has shape \(3,\)"),
        (lambda: decompose(torch.eye(3)).propagate(torch.ones(4, 1)), r"fields has shape \(4, 1\); a mesh of 3 modes"),
        (
            lambda: replace(decompose(torch.eye(3)), theta=torch.ones(2)),
            r"theta has shape \(2,\); a mesh of 3 modes needs \(..., 3\)",
        ),
        (lambda: random_unitary(0), "modes is 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- the figure


@pytest.mark.parametrize("scheme", ["clements", "reck"])
def test_light_is_followed_through_the_columns(scheme):
    unitary = random_unitary(7, generator=torch.Generator().manual_seed(1))
    mesh = decompose(unitary, scheme)
    light = figures.powers(mesh, 3)
    assert light.shape == (len(mesh.columns) + 1, 7)
    assert light[0].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert torch.allclose(light.sum(-1), torch.ones(len(light), dtype=torch.float64))
    assert torch.allclose(light[-1], unitary[:, 3].abs().square())


def test_the_figure_shows_every_interferometer_and_widens_with_the_light():
    mesh = decompose(random_unitary(5, generator=torch.Generator().manual_seed(2)))
    *lines, squares = figures.drawn(mesh, 1).data
    assert len(squares.x) == mesh.interferometers == 10
    assert sorted(squares.marker.color) == pytest.approx(sorted(torch.sin(mesh.theta / 2).square().tolist()), abs=1e-4)
    entering = [line.line.width for line in lines[:: len(mesh.columns) + 1]]
    assert [width == max(entering) for width in entering] == [False, True, False, False, False]


def test_the_slider_turns_one_phase_and_stands_where_it_is():
    mesh = decompose(random_unitary(4, generator=torch.Generator().manual_seed(3)))
    figure = figures.turned(mesh, 2, 1, steps=6)
    (slider,) = figure.layout.sliders
    assert len(slider.steps) == 7
    here = slider.steps[slider.active].args[0]
    assert here["line.width"][:-1] == [line.line.width for line in figure.data[:-1]]
    assert here["marker.color"][-1] == list(figure.data[-1].marker.color)
    assert any(step.args[0]["line.width"] != here["line.width"] for step in slider.steps)
    with pytest.raises(ValueError, match="index is 6; a whole number from 0 to 5 is needed"):
        figures.turned(mesh, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.drawn(decompose(torch.eye(17))), "mesh has 17 modes; at most 16 can be drawn"),
        (lambda: figures.powers(decompose(torch.eye(4)), 4), "port is 4; a whole number from 0 to 3 is needed"),
        (lambda: figures.powers(decompose(torch.eye(4).expand(2, 4, 4))), r"mesh is a batch of shape \(2,\)"),
    ],
)
def test_what_can_not_be_drawn_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
