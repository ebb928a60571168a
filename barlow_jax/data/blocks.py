"""Blocks of examples: read at once, by few large reads, and held until the order has passed them.

Training in an order of blocks (`order.Mixing`) and evaluations of what lies afar read so.
"""

import collections
import concurrent.futures
import copy
import dataclasses
import threading

import numpy as np

from barlow_jax.data import readers

AHEAD = 8  # blocks that are asked for before the first image of them is due
THREADS = 16  # that ask for them
STORED = 64  # images of a block in stored order, at most
GAP = 2**16  # bytes between two pieces that one read takes along, as labels and headers of a tar
MOST = 2**23  # bytes of a read, but for one larger piece: as many as one request has (remote.bucket.PART)


def batches(source, job):
    """`readers.file_batches` of a source that has read_together, its examples read in blocks.

    In an order over the whole set, and where nothing is afar, the examples are read one by one.
    """
    if job.blocks is not None and source.together:
        starts, held = job.blocks, job.held
    elif source.afar and source.together and not job.epoch_steps and source.groups is None:
        rows = len(job.plan(job.steps.start)[0])
        of_batch = np.arange(0, rows, STORED)  # a process's rows of a batch follow each other, and no others do
        starts = (np.arange(0, len(source), rows)[:, None] + of_batch).ravel()
        starts = np.append(starts[starts < len(source)], len(source))
        held = AHEAD + 4 + (source.afar.in_flight + job.threads) // min(rows, STORED)
    else:
        yield from readers.file_batches(source.fetch(), len(source), source.reading, job, source.afar)
        return
    reading = copy.copy(source)
    reading.blocks = Blocks(source.read_together, starts, held + AHEAD)
    job = dataclasses.replace(job, plan=reading.blocks.asked_ahead(job))
    try:
        yield from readers.file_batches(reading.fetch(), len(source), source.reading, job, source.afar)
    finally:
        reading.blocks.close()


class Blocks:
    """What is read of each example, as a sequence of which whole blocks are read.

    read(places), int64 [b] -> list of what is read of these, or of the error for one of them; from any number of
    threads. starts: where the blocks begin, and the last ends. held: the number that is held, those read last.
    """

    def __init__(self, read, starts, held):
        self._read, self._starts = read, starts
        self._held = Held(held, size=lambda _: 1, again=False)
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "blocks")
        self._coming, self._next = set(), 0

    def __getitem__(self, place):
        block = int(self._of(place))
        found = self._block(block)[place - int(self._starts[block])]
        if isinstance(found, Exception):
            raise found
        return found

    def _of(self, places):
        return np.searchsorted(self._starts, places, side="right") - 1

    def _block(self, block):
        return self._held.get(block, lambda: self._read(np.arange(self._starts[block], self._starts[block + 1])))

    def asked_ahead(self, job):
        """The plan of a readers.Job, that asks for the blocks of coming batches: as many rows as make AHEAD blocks."""
        rows = AHEAD * int(self._starts[-1]) / (len(self._starts) - 1)
        steps = 1 + int(rows / len(job.plan(job.steps.start)[0]))

        def plan(step):
            self._next = max(self._next, int(step))
            while self._next < min(int(step) + steps, job.steps.stop):
                index = job.plan(self._next)[0]
                self._ask(index[index >= 0])
                self._next += 1
            return job.plan(step)

        return plan

    def _ask(self, places):
        for block in dict.fromkeys(self._of(places).tolist()):
            if block not in self._coming and block not in self._held:
                self._coming.add(block)
                self._pool.submit(self._fetch, block)

    def _fetch(self, block):
        try:
            self._block(block)
        except Exception:  # whatever it is: whoever wants an image of the block reads it again and is told
            return
        finally:
            self._coming.discard(block)

    def close(self):
        """Asks for nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Held:
    """What was read last, by key, up to a limit; each is read by one thread, for which others wait.

    limit: of the sum of size(value); the latest is held in any case. again: whether what is asked for again is young
    again; else what was read first goes first.
    """

    def __init__(self, limit, size=lambda value: value.nbytes, again=True):
        self._limit, self._size, self._again, self._lock = limit, size, again, threading.Lock()
        self._futures = collections.OrderedDict()

    def __contains__(self, key):
        return key in self._futures

    def get(self, key, read):
        """What read() gives, of now or before; whatever it raises is raised to all who have waited, and forgotten."""
        with self._lock:
            future = self._futures.get(key)
            if mine := future is None:
                future = self._futures[key] = concurrent.futures.Future()
            elif self._again:
                self._futures.move_to_end(key)
        if mine:
            try:
                future.set_result(read())
            except BaseException as error:
                with self._lock:
                    del self._futures[key]
                future.set_exception(error)
            else:
                self._shrink(key)
        return future.result()

    def _shrink(self, latest):
        """Forgets what was asked for, or read, longest ago, but not the latest, nor what is being read."""
        with self._lock:
            done = {key: self._size(future.result()) for key, future in self._futures.items() if future.done()}
            total = sum(done.values())
            for key, size in done.items():
                if total <= self._limit:
                    break
                if key != latest:
                    del self._futures[key]
                    total -= size


def runs(shard, start, length):
    """Pieces of files put together that lie next to each other, or GAP apart, up to MOST bytes.

    shard, start, length: int [m]. Returns a list of (shard, first byte, number of bytes, the pieces: list of int).
    """
    found = []
    for piece in np.lexsort((start, shard)).tolist():
        of, begin, end = int(shard[piece]), int(start[piece]), int(start[piece] + length[piece])
        if found and of == found[-1][0] and begin - found[-1][2] <= GAP and end - found[-1][1] <= MOST:
            found[-1][2] = max(found[-1][2], end)
            found[-1][3].append(piece)
        else:
            found.append([of, begin, end, [piece]])
    return [(of, begin, end - begin, pieces) for of, begin, end, pieces in found]


def pieces_of(shard, start, length, read):
    """The bytes of each piece, or the OSError for which it cannot be read, by read(shard, start, length) of `runs`."""
    found = [None] * len(shard)
    for of, begin, size, pieces in runs(shard, start, length):
        try:
            data = read(of, begin, size)
        except OSError as error:
            data = error
        for piece in pieces:
            at = int(start[piece]) - begin
            found[piece] = data if isinstance(data, OSError) else data[at : at + int(length[piece])]
    return found


def taken(take, *places, pieces):
    """take(*place, piece) of each piece of `pieces_of`, or the OSError for which it cannot be had."""
    return [_taken(take, place, piece) for *place, piece in zip(*places, pieces, strict=True)]


def _taken(take, place, piece):
    try:
        return piece if isinstance(piece, OSError) else take(*place, piece)
    except OSError as error:
        return error
