"""Blocks of examples read at once, and shards from afar, by a stand-in for a bucket."""

import contextlib

import numpy as np
import pytest
import source_kinds
from stored import Stored, instruction, tfrecord

from barlow_jax import data
from barlow_jax.data import blocks, order, tars
from barlow_jax.data.remote import array_record, bucket, cache, shards
from barlow_jax.errors import UserError

FILES = [source_kinds.bmp(image) for image in np.random.RandomState(0).randint(0, 256, (24, 8, 9, 3)).astype(np.uint8)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """24 images in 2 tars and in 2 Parquet files of row groups of 3, and the index of the tars."""
    root = tmp_path_factory.mktemp("sets")
    for kind, write in (("tar", source_kinds.write_tars), ("parquet", source_kinds.write_parquet)):
        (root / kind).mkdir()
        more = {"rows": 3} if kind == "parquet" else {}
        write(root / kind, FILES, [k % 2 for k in range(24)], **more)
        data.open_source(kind, str(root / kind))
    return root


def far(kind, sets, monkeypatch, without=()):
    """The set in a stand-in for a bucket, and the stand-in."""
    files = {path.name: path.read_bytes() for path in (sets / kind).iterdir() if path.name not in without}
    stored = Stored({f"set/{name}": content for name, content in files.items()})
    monkeypatch.setattr(bucket, "opened", lambda address, cache=None: (stored, "set"))
    return data.open_source(kind, "gs://b/set"), stored


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_in_a_bucket_are_those_of_a_folder(kind, sets, monkeypatch, tmp_path):
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path))
    local, (source, stored) = data.open_source(kind, str(sets / kind)), far(kind, sets, monkeypatch)
    assert source.listing() == local.listing() and source.class_names == local.class_names
    assert source.labels.tolist() == local.labels.tolist() and source.name == "gs://b/set:train"
    assert source.where(23) == local.where(23).replace(str(sets / kind), "gs://b/set")
    assert [source.encoded(k) for k in (23, 0, 7)] == [FILES[k] for k in (23, 0, 7)]
    assert source.fingerprint() == far(kind, sets, monkeypatch)[0].fingerprint()
    for field in ("version", "written", "size"):
        changed = source.take(np.arange(24))
        one = changed._shards[1].one
        other = one._replace(**{field: getattr(one, field) * 2 + type(getattr(one, field))(1)})
        changed._shards = [changed._shards[0], changed._shards[1]._replace(one=other)]
        assert changed.fingerprint() != source.fingerprint()
    before = stored.counts.requests
    assert source.take(np.arange(23, -1, -1)).read_together(np.arange(24)) == FILES[::-1]
    assert stored.counts.requests - before == (2 if kind == "tar" else 5)  # shards, row groups that are not held


def test_an_index_that_was_copied_with_the_shards_saves_the_look(sets, monkeypatch, tmp_path):
    looked, real = [], tars.tar.look
    monkeypatch.setattr(tars.tar, "look", lambda shard: looked.append(shard.name) or real(shard))
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path / "one"))
    source, stored = far("tar", sets, monkeypatch)
    assert not looked and stored.counts.requests == 4  # the index, a header of each shard, the names of the classes
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path / "two"))
    without, stored = far("tar", sets, monkeypatch, without=["train.index.npz"])
    assert sorted(looked) == ["train-0.tar", "train-1.tar"] and without.encoded(20) == FILES[20]
    assert stored.counts.requests == 4  # each shard once through, the names, an image
    far("tar", sets, monkeypatch, without=["train.index.npz"])
    assert len(looked) == 2  # it was kept here
    # Of shards with other contents of the same size it is not taken, nor of one of another size.
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path / "three"))
    real_read, looked[:] = tars._read, []
    index = real_read(str(sets / "tar" / "train.index.npz"))
    index[1].starts[11] += 512
    monkeypatch.setattr(tars, "_read", lambda file: index if hasattr(file, "one") else real_read(file))
    assert far("tar", sets, monkeypatch)[0].encoded(11) == FILES[11] and looked == ["train-0.tar"]


def test_a_shard_that_is_gone_or_other_than_its_index(sets, monkeypatch, tmp_path):
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path))
    source, stored = far("tar", sets, monkeypatch)
    whole = stored.contents.pop("set/train-1.tar")
    found = source.read_together(np.arange(24))
    assert found[:12] == FILES[:12] and all(isinstance(one, bucket.Gone) for one in found[12:])
    stored.contents["set/train-1.tar"] = whole[1536:] + bytes(1536)
    found = source.read_together(np.arange(24))
    assert found[:12] == FILES[:12] and all("has changed" in str(one) for one in found[12:])


def test_names_of_shards_on_a_web_server(sets, monkeypatch, tmp_path):
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path))
    _, stored = far("tar", sets, monkeypatch)
    stored.scheme = "https"
    source = data.open_source("tar", "https://b/set", "train-{0..1}.tar")
    assert len(source) == 24 and source.encoded(23) == FILES[23]
    for split, words in (("train", "lists no folder"), ("train-{0..2}.tar", "train-2.tar does not exist")):
        with pytest.raises(UserError, match=words) as caught:
            data.open_source("tar", "https://b/set", split)
        source_kinds.one_sentence(caught)
    from barlow_jax.data.shards import in_braces

    assert in_braces("a{08..11}{x,y}.tar")[::3] == ["a08x.tar", "a09y.tar", "a11x.tar"] and in_braces("t") == ["t"]


def batches(source, step, count):
    more = {"blocks": order.mixing(len(source), 4, 2, source.groups)}
    read = data.train_batches(source, batch_size=6, seed=3, canvas=16, last="wrap", start_step=step, threads=2, **more)
    with contextlib.closing(read):
        return [next(read) for _ in range(count)]


def test_an_order_of_blocks_reads_each_block_once(sets, monkeypatch, tmp_path):
    """The batches are those of the local shards, from any step on, in an epoch of a request a block."""
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path))
    source, stored = far("tar", sets, monkeypatch)
    monkeypatch.setattr(blocks, "AHEAD", 1)
    source.afar = source.afar.__class__(source.afar.buckets, 2)
    began = stored.counts.requests
    ours = batches(source, 0, 40)
    # 6 blocks in each of 10 epochs, of which some are still held, and those of the next that are asked for ahead.
    assert 6 <= stored.counts.requests - began <= 66
    assert np.unique(np.concatenate([batch["index"] for batch in ours[:4]])).tolist() == list(range(24))
    again = batches(data.open_source("tar", str(sets / "tar")), 33, 2)
    for one, other in zip(again, ours[33:], strict=False):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_an_evaluation_from_afar_reads_blocks_in_stored_order(sets, monkeypatch, tmp_path):
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path))
    source, stored = far("tar", sets, monkeypatch)
    source._looked_at = True  # for values of 16 bits, image by image
    began = stored.counts.requests
    read = data.eval_batches(source, batch_size=8, canvas=16, resize_short=8, crop=8, threads=2)
    index = np.concatenate([batch["index"] for batch in read])
    assert index.tolist() == list(range(24)) and stored.counts.requests - began == 4  # 8 to 15 lie in both shards


def test_pieces_are_put_together_up_to_a_gap_and_a_size(monkeypatch):
    monkeypatch.setattr(blocks, "GAP", 5)
    monkeypatch.setattr(blocks, "MOST", 40)
    shard, start = np.asarray([1, 0, 0, 0, 0, 0]), np.asarray([12, 30, 0, 12, 36, 36])
    length = np.asarray([3, 5, 10, 14, 4, 4])
    assert blocks.runs(shard, start, length) == [(0, 0, 40, [2, 3, 1, 4, 5]), (1, 12, 3, [0])]
    monkeypatch.setattr(blocks, "MOST", 39)
    assert [run[:3] for run in blocks.runs(shard, start, length)] == [(0, 0, 35), (0, 36, 4), (1, 12, 3)]
    monkeypatch.setattr(blocks, "GAP", 3)
    assert [run[:3] for run in blocks.runs(shard, start, length)] == [(0, 0, 26), (0, 30, 10), (1, 12, 3)]

    def read(shard, begin, size):
        if shard == 1:
            raise OSError(5, "gone")
        return bytes(range(begin, begin + size))

    found = blocks.pieces_of(shard, start, length, read)
    assert found[1:] == [bytes(range(a, a + n)) for a, n in zip(start[1:], length[1:], strict=True)]
    assert str(found[0]) == "[Errno 5] gone"


def test_blocks_tell_of_one_example_and_forget_the_first(monkeypatch):
    read = []

    def together(places):
        read.append(places.tolist())
        return [ValueError("odd") if place == 3 else bytes([place]) for place in places]

    found = blocks.Blocks(together, np.asarray([0, 2, 5, 6]), held=2)
    assert [found[0], found[1], found[4], found[2]] == [b"\0", b"\1", b"\4", b"\2"] and read == [[0, 1], [2, 3, 4]]
    with pytest.raises(ValueError, match="odd"):
        found[3]
    assert found[0] == b"\0" and found[5] == b"\5" and len(read) == 3
    assert found[2] == b"\2" and len(read) == 3 and found[1] == b"\1" and len(read) == 4
    found.close()


def test_records_from_afar_are_read_together(tmp_path):
    records = [bytes([k]) * (7 * k % 90 + 1) for k in range(60)]
    stored = Stored({"0": tfrecord(records)}, cache.Cache(tmp_path, 2**20))
    opened = shards.TFRecords([instruction(60, 2, 50)], stored, stored.objects())
    opened.prepare()
    wanted = np.asarray([7, 3, 49, 4])
    before = stored.counts.requests
    assert opened.together(wanted) == [records[k + 2] for k in wanted] and stored.counts.requests == before  # were kept
    for k in (5, 6):
        start = int(opened.table(0)[k][0])
        stored.cache.path(f"0 {start}").unlink()
    assert opened.together(np.arange(9)) == records[2:11] and stored.counts.requests == before + 1
    pytest.importorskip("array_record", reason="array_record is for Linux")
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "x.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:5,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    stored = Stored({"x": path.read_bytes()})
    opened = array_record.ArrayRecords([instruction(60, 3, 50)], stored, stored.objects())
    opened.prepare()
    before = stored.counts.requests
    assert opened.together(wanted) == [records[k + 3] for k in wanted] and stored.counts.requests == before + 1


def test_a_damaged_record_afar_is_one_image_and_not_its_block(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module", reason="array_record is for Linux")
    records, path = [bytes([k]) * 50 for k in range(20)], tmp_path / "x.array_record"
    writer = module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    content = bytearray(path.read_bytes())
    whole = Stored({"x": bytes(content)})
    starts, _ = array_record.ArrayRecords([instruction(20, 0, 20)], whole, whole.objects()).table(0)
    content[int(starts[7]) + 24] = 0  # the kind of a chunk
    content[int(starts[9]) + array_record.CHUNK_HEADER + 1] = 0xFF  # the length of its sizes
    stored = Stored({"x": bytes(content)})
    opened = array_record.ArrayRecords([instruction(20, 0, 20)], stored, stored.objects())
    found = opened.together(np.arange(20))
    assert [k for k in range(20) if found[k] != records[k]] == [7, 9]
    for k in (7, 9):
        assert isinstance(found[k], OSError) and "record is damaged" in str(found[k])
        with pytest.raises(OSError, match="record is damaged"):
            opened[k]
