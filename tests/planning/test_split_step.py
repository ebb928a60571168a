"""The whole train step on eight simulated devices with its state split over them, as runs have it by default."""

import importlib

import jax.numpy as jnp
import pytest

from barlow_jax import optim, plan, sharding
from barlow_jax.planning import audit, hlo

N, D = 16, 256


def step():
    """The instructions of a tiny step with LARS; its projector's matrices are just large enough to be split."""
    config = importlib.import_module("configs.demo").get_config().unlock()
    config.update(arch="convnet", projector=(D, D), precision="float32", image_size=24, batch_size=N)
    config.optimizer.name = "lars"
    images, mesh = plan.Images(1000, 3, None, 32, "made up"), sharding.make_mesh()
    lowered = plan.lowered(config, *plan.program(config, images, mesh), images)
    return hlo.instructions(lowered.compile().as_text())


@pytest.mark.parametrize(("norm", "gathered"), [(optim.norm, False), (lambda x: jnp.linalg.norm(x.ravel()), True)])
def test_no_device_holds_a_matrix_of_the_projector(monkeypatch, norm, gathered):
    """Activations are gathered, 2N x D; LARS's norm of the flat matrix, as it was taken once, gathered D x D too."""
    monkeypatch.setattr(optim, "norm", norm)
    found = step()
    matrices = audit.gathers(found, bound=2 * N * D * 4)
    assert bool(matrices) == gathered, matrices
    assert not audit.reductions(found, 2 * N, D)
    assert not audit.sorts(found)
