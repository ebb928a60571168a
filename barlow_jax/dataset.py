"""Sets of images: packed into shards, and what they are made of.

    barlow-jax pack /data/imagenet/train /data/shards --split=train
    barlow-jax pack /data/imagenet/val /data/shards --split=val
    python train.py --config=configs/barlow_twins.py --config.data.kind=tar --config.data.path=/data/shards
    barlow-jax pack /my/photos /data/small --short_side=256 --quality=90
    barlow-jax pack /my/photos /data/photos --format=array_record

    barlow-jax data stats /my/photos

`pack` writes WebDataset's form or that of TFDS, with the bytes of the files as they are or made smaller once. A line
that was stopped goes on; at the end all is read again and compared. `data stats` says how images are to be read, as
lines for a command. A set is a folder, an .npz, a list of files, a folder of tar or Parquet shards (FOLDER:SPLIT), or
NAME:SPLIT of TFDS.
"""

import os
import re
import time

from barlow_jax.data import order, pack, pack_forms, sensors, shards, stats, walk
from barlow_jax.errors import UserError
from barlow_jax.evaluation.image_sets import open_any, value_range
from barlow_jax.run import launch, writing

PIXELS = 2000  # images whose pixels are looked at, if not said


def define_flags(flag):
    flag.arguments("barlow-jax pack SET OUT", "barlow-jax data stats SET")
    flag.choice("format", pack_forms.FORMS, "pack: tar as WebDataset has it, or a set of TFDS in its files.", "tar")
    flag.text("split", "pack: what the names of the shards begin with.", "train")
    flag.number("short_side", "pack: images with a longer one become JPEGs of this; 0 packs files as they are.")
    flag.number("quality", "pack: of these JPEGs, 1 to 95.", 90)
    flag.number("shard", "pack: images in each shard; 0 is as many as make about 256 MB.")
    flag.switch("shuffle", "pack: store the images in an order of chance, for training in an order of blocks.")
    flag.number("pixels", "stats: images whose every pixel is looked at, evenly spaced; 0 is all.", PIXELS)
    flag.names("value_range", "stats: LOW,HIGH of images of more than 8 bits, as in config.data.value_range.")
    flag.number("channels", "stats: pages of a TIFF or frames of a DICOM file that are the channels of one image.")
    flag.number("max_pixels", "Of an image; more are unreadable.", 2**26)
    flag.text("data_dir", "Where TFDS keeps its sets, if not at home.")
    flag.number("threads", "Images that are read at a time; 0 is one a core.")


def main(wanted):
    what, *words = wanted.arguments or [""]
    threads = wanted.threads or os.cpu_count() or 1
    if what == "pack" and len(words) == 2:
        packed(wanted, *words, threads)
    elif what == "stats" and len(words) == 1:
        reading = {"value_range": value_range(wanted.value_range), "max_pixels": wanted.max_pixels}
        source = open_any(words[0], wanted.channels, wanted.data_dir, any_range=True, **reading)
        print("\n".join(stats.lines(stats.measure(source, wanted.pixels, threads), source)))
    else:
        raise UserError("Say `barlow-jax pack SET OUT` or `barlow-jax data stats SET`.")


def packed(wanted, images, out, threads):
    """Packs, and says what became of it and how long reading takes before and after."""
    if not re.fullmatch("[A-Za-z]+", wanted.split):  # train_small-00000.tar would be of the split train too
        raise UserError(f"--split is {wanted.split!r}; take letters only, such as train, as names of shards have it.")
    if not (1 <= wanted.quality <= 95 and wanted.short_side >= 0 and wanted.shard >= 0):
        raise UserError("--quality is 1 to 95, and --short_side and --shard are 0 or more; say another.")
    out = str(walk.local_path(out))
    if os.path.realpath(out) == os.path.realpath(images):
        raise UserError(f"{out} is the set itself: give another folder for the shards.")
    began = time.monotonic()
    more = {"max_pixels": wanted.max_pixels}
    source, names = open_any(images, 0, wanted.data_dir, **more), shards.class_names(shards.Folder(out))
    folders = walk.class_folders(images) if os.path.isdir(images) else []
    if names and source.class_names != names and (source.class_names or {*folders} & {*names}):
        # Another split in this folder has numbered them.
        source = open_any(images, 0, wanted.data_dir, class_names=names, **more)
    opening = time.monotonic() - began
    if source.images is not None or (source.labels is None and source.num_classes is not None):
        raise UserError(f"{source.name} is addressed by index as it is; pack takes image files, and shards of them.")
    if sensors.kind(source.encoded(0)):
        raise UserError(
            f"{source.name} holds DICOM files or arrays; pack takes image files, and these stay as they are."
        )
    if wanted.shuffle:
        source = source.take(order.epoch_permutation(0, 0, len(source)))
    before = pack.read_seconds(lambda row: pack.read_file(source, row), len(source))
    form, size = pack_forms.FORMS[wanted.format](out, wanted.split), pack.Size(wanted.short_side, wanted.quality)
    with writing.told(out):
        told = pack.pack(source, form, size, wanted.shard, threads)
    began = time.monotonic()
    made_of = form.open()
    reopening = time.monotonic() - began
    after = pack.read_seconds(lambda row: form.image(made_of, row), len(made_of))
    made = f", {told['resized']:,} of them at a short side of {size.short_side} as JPEG of quality {size.quality}"
    made = made if size.short_side else ""
    print(f"{told['images']:,} images{made}; {told['bytes'] / 1e6:,.1f} MB in shards: {told['shards']}")
    if told["unreadable"]:
        print(
            f"{told['unreadable']:,} cannot be opened and were packed as they are; `barlow-jax data stats` says which."
        )
    print(f"read again and compared: the same; {told['seconds']:.1f} s in all")
    print(f"opened in {opening:.2f} s before and {reopening:.2f} s now; in an order over the whole set, by one thread,")
    rates = [f"{count / max(seconds, 1e-9):,.0f}" for seconds, count in (before, after)]
    print(f"{rates[0]} images/s were read before (as the disk or its cache had them), {rates[1]} now (from the cache)")
    print(f"train with {form.flags()} --config.data.train={wanted.split}")


if __name__ == "__main__":
    launch.run(main, define_flags)
