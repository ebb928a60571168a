"""The profile of some steps: which of them are in the trace."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from barlow_jax.run.profile import Profile


def traced(folder):
    """The numbers of the steps in all traces below a folder."""
    names = set()
    for file in folder.rglob("*.trace.json.gz"):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        names |= {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
    return names


@pytest.mark.parametrize(
    ("steps", "start", "found"),
    [((3, 4), 0, {2, 3}), ((3, 9), 4, {4, 5}), ((), 0, set()), ((9, 9), 0, set())],
    ids=["in the middle", "gone on from inside, stopped before its end", "none", "beyond the end"],
)
def test_the_steps_that_were_asked_for_are_traced(tmp_path, steps, start, found):
    """Six steps, counted from 0 in the trace and from 1 in the config."""
    add, state = jax.jit(lambda x: x + 1), jnp.zeros(())
    profile = Profile(tmp_path, steps)
    for step in range(start, 6):
        with profile.step(step, state):
            state = add(state)
    profile.close()
    profile.close()
    assert traced(tmp_path) == found and bool(steps and found) == bool(list(tmp_path.iterdir()))
