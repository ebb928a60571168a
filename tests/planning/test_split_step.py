"""The whole train step on eight simulated devices with its state split over them, as runs have it by default."""

import importlib

from barlow_jax import plan, sharding
from barlow_jax.planning import audit, hlo

N, D = 16, 512
KERNEL = 3 * 3 * 64 * 256 * 4  # the largest of the network's; smaller than a matrix of the projector


def test_no_device_holds_a_matrix_of_the_projector():
    """Of what is gathered, the backbone's kernels are the largest; LARS's norms of flat matrices were larger, once."""
    config = importlib.import_module("configs.demo").get_config().unlock()
    config.update(arch="convnet", projector=(D, D), precision="float32", image_size=24, batch_size=N)
    config.optimizer.name = "lars"
    images, mesh = plan.Images(1000, 3, None, 32, "made up"), sharding.make_mesh()
    lowered = plan.lowered(config, *plan.program(config, images, mesh), images)
    found = hlo.instructions(lowered.compile().as_text())
    assert KERNEL < D * D * 4
    assert not audit.gathers(found, KERNEL)
    assert audit.gathers(found, KERNEL - 1)  # it reads what is there
    assert not audit.sorts(found)
