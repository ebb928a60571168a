"""Fields that change what is shown or how fast, and not the result: they may differ when a run goes on."""

PRETRAINING = (
    "data.path",
    "data.threads",
    "eval.every_epochs",
    "eval.batch_size",
    "log_every_steps",
    "picture_every_epochs",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "wandb",
    "mlflow",
    "profile_steps",
    "compilation_cache",
    "deterministic",
    "remat",
    "shard_params",
    "eval.lidar_images",
    "on_collapse",
    "on_nonfinite",
    "max_skipped",
)

LINEAR = (
    "data.path",
    "data.threads",
    "eval.batch_size",
    "log_every_steps",
    "checkpoint_every_epochs",
    "keep_checkpoints",
    "wandb",
    "mlflow",
    "compilation_cache",
    "deterministic",
)
