"""Steps of Muon: orthogonal for matrices, those of AdamW for everything else."""

import pytest
import torch
from conftest import BACKBONES, small_potential

from ase_biasgrad.training.muon import LIKE_ADAM, Muon, hidden_matrices, orthogonalised


def matrix(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    found = orthogonalised(torch.stack([matrix(*shape, seed=s).detach() for s in range(5)]))
    for one, before in zip(found, range(5), strict=True):
        u, values, v = torch.linalg.svd(matrix(*shape, seed=before).detach(), full_matrices=False)
        inner = u.T @ one @ v.T
        assert (inner - torch.diag(torch.diag(inner))).abs().max() < 1e-10
        whole = torch.diag(inner)[values > 1e-3 * values.norm()]
        assert whole.min() > 0.8
        assert whole.max() < 1.2


def test_size_of_the_gradient_does_not_matter_and_none_is_no_step():
    one, two = matrix(5, 7).detach(), 1e6 * matrix(5, 7).detach()
    torch.testing.assert_close(*(orthogonalised(x[None]) for x in (one, two)), rtol=1e-9, atol=0)
    assert (orthogonalised(torch.zeros(2, 5, 7)) == 0).all()


def test_first_step_of_a_matrix_is_the_orthogonal_gradient():
    weight, bias = matrix(8, 3), matrix(8, seed=1)
    before, gradient = weight.detach().clone(), matrix(8, 3, seed=2).detach()
    optimizer = Muon([weight], [bias], lr=0.1, weight_decay=0.5)
    weight.grad, bias.grad = gradient, torch.ones_like(bias)
    optimizer.step()
    step = 0.1 * LIKE_ADAM * 8**0.5 * orthogonalised(gradient[None])[0]
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - step)


def test_other_parameters_move_as_with_adamw():
    mine, theirs = matrix(4, seed=3), matrix(4, seed=3)
    weight = matrix(5, 4)
    ours = Muon([weight], [mine], lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for optimizer, bias in ((ours, mine), (adamw, theirs)):
        for _ in range(5):
            optimizer.zero_grad()
            bias.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    assert torch.equal(weight, matrix(5, 4))  # without a gradient nothing moves


OLDER = {  # what the groups of AdamW's own class had
    "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False, "foreach": None,
    "capturable": False, "differentiable": False,
}  # fmt: skip


@pytest.mark.parametrize("of_group", [{}, OLDER])
def test_a_state_goes_on_where_it_was(of_group):
    def begin() -> tuple[Muon, torch.nn.Parameter, torch.nn.Parameter]:
        weight, bias = matrix(6, 4), matrix(6, seed=1)
        return Muon([weight], [bias], lr=0.05), weight, bias

    def go(optimizer: Muon, weight: torch.Tensor, bias: torch.Tensor, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (weight.T @ torch.tanh(bias)).square().sum().backward()
            optimizer.step()

    whole = begin()
    go(*whole, 6)
    first, second = begin(), begin()
    go(*first, 3)
    with torch.no_grad():
        for there, here in zip(second[1:], first[1:], strict=True):
            there.copy_(here)
    state = first[0].state_dict()
    state["param_groups"][1] |= of_group
    second[0].load_state_dict(state)
    go(*second, 3)
    for one, two in zip(whole[1:], second[1:], strict=True):
        assert torch.equal(one, two)


def test_hidden_matrices_are_the_weights_of_layers_that_learn():
    backbone = small_potential("tensornet").backbone
    names = {id(p): name for name, p in backbone.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(backbone)}
    assert "layers.0.before.parts.0.weight" in found
    assert not any("element" in name or name.endswith("bias") for name in found)
    assert not any("radial" in name for name in found)
    assert "readout.2.weight" not in found  # one output
    backbone.layers[0].before.parts[0].weight.requires_grad_(False)
    assert len(hidden_matrices(backbone)) == len(found) - 1


@pytest.mark.parametrize("name", BACKBONES)
def test_radial_functions_of_a_backbone_are_there(name):
    backbone = small_potential(name).backbone
    parts = {part for module, _ in backbone.named_modules() for part in module.split(".")}
    assert set(backbone.radial) <= parts
