"""Compiled programs kept on disk: where, found again, cut off in the middle, and the options they are compiled with."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from barlow_jax import experiment, pretrain, sharding
from barlow_jax.errors import UserError
from barlow_jax.run import compilation_cache
from configs import demo

EVENTS = []
monitoring.register_event_listener(lambda event, **_: EVENTS.append(event.rpartition("/")[2]))


@pytest.fixture(autouse=True)
def everything_is_kept():
    """Programs of milliseconds too; and what JAX had of a cache before is as it was after each test."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    set_cache(None, 0.0)
    yield
    assert jax.config.jax_compilation_cache_dir is None
    set_cache(*before)


def set_cache(folder, seconds):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    jax.config.update("jax_compilation_cache_dir", folder)
    reset_cache()


def compiled():
    """What JAX told of its cache ("cache_hits", "cache_misses") while one program was compiled as in a new process."""
    EVENTS.clear()
    jax.jit(lambda x: jnp.sin(x) @ x.T + 7).lower(jax.ShapeDtypeStruct((3, 3), jnp.float32)).compile()
    return [event for event in EVENTS if event in ("cache_hits", "cache_misses")]


def entries(folder):
    return sorted(folder.glob(f"jaxlib-*/{compilation_cache.ENTRIES}"))


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_a_program_is_found_again_in_the_work_folder_or_where_the_config_says(tmp_path, where):
    folder = tmp_path / "elsewhere" if where else tmp_path / "run" / "compiled"
    with compilation_cache.used(str(tmp_path / where) if where else "", tmp_path / "run"):
        assert compiled() == ["cache_misses"]
        assert len(entries(folder)) == 1
    assert not compiled()  # outside, nothing is looked for
    with compilation_cache.used(str(tmp_path / where) if where else "", tmp_path / "run"):
        assert compiled() == ["cache_hits"]


def test_an_entry_that_was_cut_off_is_written_anew(tmp_path, caplog):
    """As a kill in the middle of writing leaves it. Without the sweep JAX warns, which is an error here."""
    with compilation_cache.used("", tmp_path):
        compiled()
    [entry] = entries(tmp_path / "compiled")
    whole = entry.read_bytes()
    for length in (len(whole) - 5, 0):
        entry.write_bytes(whole[:length])
        with compilation_cache.used("", tmp_path):
            assert not entry.exists() and "was not written to its end" in caplog.text
            assert compiled() == ["cache_misses"]
            assert entry.exists()
    with compilation_cache.used("", tmp_path):
        assert compiled() == ["cache_hits"]


def test_zstandard_entries_are_looked_at_too():
    zstandard = pytest.importorskip("zstandard")
    entry = zstandard.ZstdCompressor().compress(bytes(1000))
    assert compilation_cache._is_whole(entry) and not compilation_cache._is_whole(entry[:-3])


def test_no_cache_and_one_that_jax_was_told_of(tmp_path):
    given = str(tmp_path / "given")
    jax.config.update("jax_compilation_cache_dir", given)
    try:
        with compilation_cache.used("", tmp_path):
            assert jax.config.jax_compilation_cache_dir == given
        with compilation_cache.used("none", tmp_path):
            assert jax.config.jax_compilation_cache_dir is None
        assert jax.config.jax_compilation_cache_dir == given
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for where, sentence in (
        ("gs://bucket/x", "not on a file system; give"),
        (str(tmp_path / "file"), "another folder"),
    ):
        with pytest.raises(UserError, match=sentence), compilation_cache.used(where, tmp_path):
            pass
    config = demo.get_config().unlock()
    config.update({"deterministic": True, "compilation_cache": "none"})
    with pytest.raises(UserError, match="config.deterministic is True with config.compilation_cache 'none'; the cache"):
        experiment.check(config)


def test_deterministic_is_an_option_of_gpus_and_reaches_the_compiler(monkeypatch):
    """In place of the real option one that XLA does not have: it is refused by the compiler, by name."""

    def mesh(platform):
        return types.SimpleNamespace(devices=types.SimpleNamespace(flat=[types.SimpleNamespace(platform=platform)]))

    wanted = {"xla_gpu_exclude_nondeterministic_ops": True}
    assert sharding.compiler_options(mesh("gpu"), deterministic=True) == wanted
    assert not sharding.compiler_options(mesh("gpu")) and not sharding.compiler_options(mesh("tpu"), deterministic=True)
    jax.jit(lambda x: x, compiler_options=wanted).lower(1.0).compile()  # XLA has it

    asked = []

    def recorded(mesh, *, deterministic=False):
        asked.append(deterministic)
        return {"xla_of_nobody": deterministic}

    monkeypatch.setattr(sharding, "compiler_options", recorded)
    config = demo.get_config().unlock()
    config.update({"projector": (8, 8), "image_size": 12, "deterministic": True})
    method, state = experiment.method(
        config,
        channels=3,
        num_classes=None,
        steps_per_epoch=9,
        mesh=sharding.make_mesh(jax.devices()[:1]),
        abstract=True,
    )
    batch = {
        "canvas": jax.ShapeDtypeStruct((4, 12, 12, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((4, 2, 4), jnp.float32),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_of_nobody"):
        pretrain.make_train_step(method).lower(state, batch).compile()
    assert asked == [True]
