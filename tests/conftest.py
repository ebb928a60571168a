"""Eight simulated CPU devices for every test, set before JAX starts."""

import json
import os
import resource

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import commands
import jax
import numpy as np
import pytest

# The files that take longest, which begin first, so that both workers end together: they are handed out one by one.
LONGEST = (
    "test_resnet",
    "test_pretrain",
    "test_export",
    "test_linear_eval",
    "test_train",
    "test_pixels",
    "test_stops",
    "test_api",
    "test_frozen",
    "test_train_stops",
    "test_records",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))  # stable: else as they were


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Tests, and commands that they start, share what they compile, over all workers: most of their time."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "xla"
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared))
    seconds = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))


@pytest.fixture(scope="module", autouse=True)
def what_a_module_compiled_goes_with_it():
    """A worker held 6 GB of programs at the end of the suite otherwise."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def commands_end_with_their_test():
    """Nothing that a test has started goes on after it. What a fixture of a module started before it may."""
    before = set(commands.RUNNING)
    yield
    commands.end_all(but=before)


@pytest.fixture
def x64():
    """Double precision, for comparisons with the float64 fixtures."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def golden():
    """golden("loss") -> (arrays, description) of tests/fixtures; see ORIGIN.md there."""

    def load(name):
        arrays = commands.FIXTURES / f"{name}.npz"
        described = json.loads((commands.FIXTURES / f"{name}.json").read_text())
        return (dict(np.load(arrays)) if arrays.exists() else {}), described

    return load


@pytest.fixture(scope="module")
def pillow(golden):
    """What Pillow makes of the fixtures of the views: (arrays as float32, parameters)."""
    arrays, described = golden("augment")
    return {name: array.astype(np.float32) for name, array in arrays.items()}, described


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of 48 JPEGs in three classes, that no test changes."""
    return commands.photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def full_disk():
    """No file may grow beyond 64 kB, which the operating system reports in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
