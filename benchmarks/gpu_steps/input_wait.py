"""Whether the host's input pipeline feeds the device: train.py on JPEGs, and the share of its time that it waited.

Images of --images, or drawn ones of ImageNet's usual size, which decode about as fast. Nothing else in gpu.py needs
TensorFlow.
"""

import statistics

import numpy as np

from . import record, runs, steps


def measure(context):
    absent = [name for name in ("tensorflow", *(() if context.options.images else ("PIL",))) if not steps.has(name)]
    if absent:
        raise record.Skipped(f"{' and '.join(absent)} not installed")
    folder = context.options.images or drawn(context.out / "images", 48 if context.small else 1024)
    count = sum(1 for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if context.small:
        size = {"arch": "convnet", "projector": "(16,16)", "image_size": 24, "batch_size": 16, "data__canvas": 64}
    else:
        size = {"arch": "resnet50", "batch_size": 256}
    batch, wanted = size["batch_size"], 6 if context.small else 80
    words = runs.line(
        "train",
        context.out / "run",
        **size,
        precision=context.machine()["precision"],
        data__path=folder,
        data__train=".",
        data__val="",
        data__resident_bytes=0,
        epochs=max(wanted * batch // count, 2),
        warmup_epochs=1,
        eval__every_epochs=0,
        log_every_steps=max(wanted // 10, 1),
        picture_every_epochs=0,
        **({"eval__crop": 24, "eval__resize": 24} if context.small else {}),
    )
    run = runs.Run([*words, "--config=barlow_twins"], context.out / "run.log")
    status = run.wait(context.deadline)
    if status is None:
        run.stop()  # what it has logged by now is enough
    elif status:
        raise RuntimeError(run.said())
    lines = [line for line in runs.metrics(context.out / "run") if "images_per_second" in line]
    settled = lines[len(lines) // 2 :]
    if not settled:
        raise RuntimeError(f"no speed was logged in {context.out / 'run'}; see run.log there")
    rate, waits = (statistics.median(line[name] for line in settled) for name in ("images_per_second", "data_wait"))
    cores = context.machine()["cores"]
    said = f"{rate:,.0f} images/s with {cores} cores, batch {batch}, {count} images"
    context.row("waiting for data", f"{waits:.1%} of the time", said, data_wait=waits, images_per_second=rate)


def drawn(folder, count):
    """A folder of JPEGs of 500 x 375 pixels and some 100 kB each."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        if not (folder / f"{k:05}.jpg").exists():
            coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), np.int16)
            noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "half", format="JPEG", quality=92)
            (folder / "half").replace(folder / f"{k:05}.jpg")
    return folder
