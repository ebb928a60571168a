"""`python train.py` on photographs: the command line of a run of seconds."""

import commands


def arguments(photographs, workdir, *more):
    return (
        "--config=configs/image_folder.py",
        f"--config.data.path={photographs}",
        f"--workdir={workdir}",
        *commands.SMALL,
        "--config.epochs=8",
        "--config.checkpoint_every_steps=5",
        "--config.eval.every_epochs=4",
        "--config.data.val=.",
        *more,
    )
