"""Processes and files whose user has no name: containers started with --user, OpenShift, NFS."""

import os
import pathlib
import shutil
import tempfile

import commands
import pytest

NOBODY = 54_321  # no name in any list of users
LINE = (
    "train.py",
    "--config=demo",
    "--config.projector=(32,32)",
    *(f"--config.views.{field}" for field in ("rotation=0.0", "crop_scale=(0.6,1.0)", "jitter=0.0", "grayscale=0.0")),
    "--config.warmup_epochs=0",
    "--config.batch_size=256",
    "--config.eval.every_epochs=0",
    "--config.picture_every_epochs=0",
)


@pytest.fixture
def everyones():
    """A folder that all may write to, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield pathlib.Path(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.slow
def test_a_user_without_a_name_saves_resumes_and_is_read(everyones):
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv to become somebody else with")
    become = (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    home = {"HOME": str(everyones), "JAX_COMPILATION_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"}
    for epochs, said in ((1, "finished at step 14"), (2, "going on from step 14 of 28")):
        more = (f"--config.epochs={epochs}", "--allow_changes=epochs", f"--workdir={everyones / 'run'}")
        status, output = commands.run(*LINE, *more, prefix=become, **home)
        assert status == 0 and said in output, output
    assert (everyones / "run" / "config.json").stat().st_uid == NOBODY
    # And as root, whose name says nothing about the owner's.
    status, output = commands.run("-m", "barlow_jax.knn", f"--checkpoint={everyones / 'run'}", "--config.shot_seeds=0")
    assert status == 0, output
