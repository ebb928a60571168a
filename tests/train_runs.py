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
        "--config.picture_every_epochs=10",
        "--config.views.blur=(1.0, 0.1)",
        "--config.lambd=0.0051",
        "--config.optimizer.learning_rate_weights=0.4",
        *more,
    )
