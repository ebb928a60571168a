"""The comparison with the committed table of programs."""

import copy

import compiled_steps
import pytest

COMMITTED = {
    "temporaries": 1000,
    "arguments": 200,
    "traffic": 50_000,
    "views, share of the traffic": 0.1,
    "collectives": {"all-gather": [3, 900, 400]},
}


def test_the_same_figures_are_not_apart():
    assert not compiled_steps.apart(COMMITTED, COMMITTED)
    assert not compiled_steps.apart(COMMITTED | {"traffic": 51_400, "temporaries": 975}, COMMITTED)


@pytest.mark.parametrize("factor", [0.96, 1.04])
@pytest.mark.parametrize("name", ["temporaries", "arguments", "traffic", "views, share of the traffic"])
def test_a_figure_that_moved_by_4_percent_is_named(name, factor):
    (found,) = compiled_steps.apart(COMMITTED | {name: COMMITTED[name] * factor}, COMMITTED)
    assert found.startswith(name)


@pytest.mark.parametrize(
    "collectives",
    [
        {"all-gather": [3, 940, 400]},
        {"all-gather": [2, 900, 500]},
        {},
        {"all-gather": [3, 900, 400], "all-to-all": [1, 1, 1]},
    ],
)
def test_other_collectives_are_named(collectives):
    here = copy.deepcopy(COMMITTED) | {"collectives": collectives}
    assert len(compiled_steps.apart(here, COMMITTED)) == 1


@pytest.mark.parametrize("topology", compiled_steps.MACHINES)
def test_the_table_has_every_machine(topology):
    committed = compiled_steps.committed(topology)
    assert set(committed) == {*COMMITTED, "compiled by"}
