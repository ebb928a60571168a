"""The table of GPUs, and what is said where their compiler is missing or does not take the card."""

import re

import jax
import pytest

from barlow_jax.planning import gpus, machines


def test_every_gpu_has_its_card():
    assert set(gpus.CARDS) == set(machines.GPUS)


def test_what_the_compiler_is_told_of_a_card():
    """Against openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb, whose bandwidth has more digits."""
    chip = machines.GPUS["H100"]
    text = gpus.target(gpus.CARDS["H100"], chip.memory, chip.bandwidth)
    facts = dict(re.findall(r"(\w+): (\S+)", text))
    published = {
        "threads_per_block_limit": "1024",
        "threads_per_warp": "32",
        "shared_memory_per_block": "49152",
        "shared_memory_per_core": "233472",
        "shared_memory_per_block_optin": "232448",
        "threads_per_core_limit": "2048",
        "core_count": "132",
        "fpus_per_core": "128",
        "block_dim_limit_x": "2147483647",
        "block_dim_limit_y": "65535",
        "l2_cache_size": "52428800",
        "clock_rate_ghz": "1.98",
        "registers_per_core_limit": "65536",
        "feature_extension": "ACCELERATED_FEATURES",
        "active_links": "18",
        "platform_name": '"CUDA"',
    }
    assert {name: facts[name] for name in published} == published
    assert float(facts["memory_bandwidth"]) == pytest.approx(3352320000000, rel=1e-3)
    assert float(facts["device_memory_size"]) == pytest.approx(84942979072, rel=0.02)
    assert "major: 9 minor: 0 feature" in text and text.count("{") == text.count("}")


def test_arithmetic_of_a_card_is_what_its_data_sheet_says():
    """Float32 lanes x clock x 2, in TFLOP/s, of NVIDIA's data sheets: a wrong digit in the table would show."""
    sheets = {"T4": 8.1, "V100": 15.7, "A100-80": 19.5, "L4": 30.3, "RTX4090": 82.6, "H100": 67, "H200": 67, "B200": 75}
    for name, rate in sheets.items():
        card = gpus.CARDS[name]
        assert 2 * card.multiprocessors * card.lanes * card.clock / 1e3 == pytest.approx(rate, rel=0.02), name


def test_without_the_plugin_the_cpu_stands_in_and_says_so(monkeypatch):
    monkeypatch.setattr(gpus, "PLUGINS", ())
    compiler = machines.compiler(machines.parse("gpu:2x4xA100-80"))
    assert compiler.platform == "cpu" and len(compiler.devices) == 8 and not compiler.own
    assert f"pip install jax-cuda12-plugin=={jax.__version__}" in compiler.said[0]
    assert "upper bounds" in compiler.said[1]


def test_a_card_that_xla_does_not_take_is_estimated_and_says_why(monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such card")

    monkeypatch.setattr(gpus, "plugin", lambda: "jax_cuda12_plugin 0.0")
    monkeypatch.setattr(gpus, "devices", refuse)
    compiler = machines.compiler(machines.parse("gpu:8xT4"))
    assert compiler.platform == "cpu"
    assert "jax_cuda12_plugin 0.0 does not take the card (no such card)" in compiler.said[0]
