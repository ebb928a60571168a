"""A cloud in this process: what `bucket` asks of its library, of a dict, with the conditions of the clouds."""

import contextlib
import datetime
import pathlib
from types import SimpleNamespace

from barlow_jax.data.remote import bucket

WRITTEN = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)


class AlreadyExistsError(Exception):
    pass


class PreconditionError(Exception):
    pass


class Cloud:
    """Attributes: contents {name: (bytes, version)}; done, the writes in order: (name, bytes, or None for a removal);
    fault, called with ("put", name) and the like before anything is done: may raise."""

    def __init__(self, contents=()):
        self.contents, self.done, self.number = dict(contents), [], 0
        self.fault = lambda what, name: None

    def put(self, store, name, content, mode="overwrite", **how):
        self.fault("put", name)
        content = content.read_bytes() if isinstance(content, pathlib.Path) else bytes(content)
        there = self.contents.get(name)
        if mode == "create" and there is not None:
            raise AlreadyExistsError(name)
        if isinstance(mode, dict) and there is None:  # as S3 says it
            raise FileNotFoundError(name)
        if isinstance(mode, dict) and mode["e_tag"] != there[1]:
            raise PreconditionError(name)
        self.number += 1
        self.contents[name] = content, f'"{self.number}"'
        self.done.append((name, content))
        self.fault("stored", name)
        return {"e_tag": f'"{self.number}"', "version": None}

    def meta(self, name):
        content, version = self.contents[name]
        return {"path": name, "size": len(content), "e_tag": version, "version": None, "last_modified": WRITTEN}

    def get(self, store, name, options=None):
        self.fault("get", name)
        if name not in self.contents:
            raise FileNotFoundError(name)
        start, end = (options or {}).get("range", (0, None))
        content = self.contents[name][0][start:end]
        return SimpleNamespace(meta=self.meta(name), bytes=lambda: content)

    def head(self, store, name):
        self.fault("head", name)
        if name not in self.contents:
            raise FileNotFoundError(name)
        return self.meta(name)

    def delete(self, store, name):
        self.fault("delete", name)
        self.contents.pop(name, None)
        self.done.append((name, None))

    def list(self, store, prefix, chunk_size):
        yield [self.meta(name) for name in sorted(self.contents) if name.startswith(f"{prefix.rstrip('/')}/")]

    def list_with_delimiter(self, store, prefix):
        self.fault("list", prefix)
        start = f"{prefix}/" if prefix else ""
        rest = [name.removeprefix(start) for name in sorted(self.contents) if name.startswith(start)]
        folders = {start + name.partition("/")[0] for name in rest if "/" in name}
        return {"common_prefixes": sorted(folders), "objects": [self.meta(start + n) for n in rest if "/" not in n]}

    def below(self, name):
        """{rest of the name: bytes} of what is in a folder."""
        return {one[len(name) + 1 :]: found[0] for one, found in self.contents.items() if one.startswith(f"{name}/")}


@contextlib.contextmanager
def on(cloud, patch):
    """Inside it all buckets are this cloud."""
    with patch.context() as inside:
        inside.setattr(bucket, "_library", lambda: cloud)
        inside.setattr(bucket, "_store", lambda root: None)
        yield cloud
