"""Sets of tensorflow-datasets that lie prepared below an address: what describes them comes to a local folder."""

import pathlib
import shutil
import tempfile
import weakref

from barlow_jax.data.remote import bucket
from barlow_jax.errors import UserError

INFO = "dataset_info.json"
DESCRIBES = (".json", ".txt")


class Prepared:
    """A set below an address.

    address: where TFDS keeps its sets. name: such as "cifar10", "imagenet2012_subset/1pct" or "voc/2007:5.0.0"; without
    a version its newest is taken. cache: a cache.Cache, or None.
    Attributes: bucket; folder, local, with the set's description and none of its records,
    which goes with this object: TFDS has read it then.
    UserError where there is no such set, or several by this name.
    """

    def __init__(self, address, name, cache=None):
        self.bucket, prefix = bucket.opened(address, cache)
        below = f"{prefix.strip('/')}/{name.replace(':', '/')}".strip("/")
        objects = self.bucket.list(below)
        chosen = _chosen([one.name for one in objects], f"{address}/{name}")
        self._objects = {one.name[len(chosen) + 1 :]: one for one in objects if one.name.startswith(f"{chosen}/")}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="barlow-jax-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        for file, one in self._objects.items():
            if file.endswith(DESCRIBES) and "/" not in file:
                (self.folder / file).write_bytes(self.bucket.read(one))

    def objects(self, files):
        """The bucket.Object of each of these files of the set. UserError names one that is not there."""
        missing = [file for file in files if file not in self._objects]
        if missing:
            raise UserError(
                f"{self.bucket.root} lacks {missing[0]}, which belongs to the set, and {len(missing) - 1} other of its "
                f"{len(files)} files: copy the set again."
            )
        return [self._objects[file] for file in files]


def _chosen(names, where):
    """The folder of the newest version, of one configuration."""
    folders = [name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == INFO]
    by_set = {}
    for folder in folders:
        above, _, version = folder.rpartition("/")
        if version.replace(".", "").isdigit():
            by_set.setdefault(above, []).append([int(part) for part in version.split(".")])
    if not by_set:
        raise UserError(f"No set lies prepared in {where}: copy there what TFDS has prepared, with its folders.")
    if len(by_set) > 1:
        known = ", ".join(sorted(above.rpartition("/")[2] for above in by_set))
        raise UserError(f"{where} has several sets ({known}): name one of them too in config.data.name.")
    ((above, versions),) = by_set.items()
    return f"{above}/{'.'.join(map(str, max(versions)))}"
