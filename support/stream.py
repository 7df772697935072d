"""Training pairs from shards: tars that are read from front to end, with no file to open for each photo."""

import itertools
import posixpath
import random
import sys
from collections import Counter

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from support.errors import UserError
from support.process import process_count, process_number
from support.tars import library, parts_of, tar_of

SHUFFLED = 1000  # photos, still compressed, among which a worker draws the next one: some 100 MB
NAMED = 5  # bad samples that a worker names; it counts all of them


class ShardStream(IterableDataset):
    """The items of a `dataset.CaptionDataset` whose photos lie in shards, in the order in which these stream by.

    pairs: the CaptionDataset; an item is what it would give for that photo, of bytes that come from the stream.
    batch_size: pairs of all processes together. epoch_shards: how many shards an epoch shows; 0: all of them.

    The photos of an epoch, shard after shard in a shuffled order, are cut into equal stretches, one for each process,
    and these into whole batches for its workers. So all processes make the same number of steps, without which they
    would wait for each other for ever; no photo is shown twice, unless shards differ so much in size that an epoch of
    small ones must begin again; and only shards at a cut are read by two. A worker reads from front to end and draws
    from the `SHUFFLED` photos that it has read last.

    All is drawn from (seed, epoch) and which worker of how many it is. Epoch e shows the shards from (e - 1) * K to
    e * K of an endless row, all shards in one order after another; so what a checkpoint says of its epoch also says
    which shards come next, and a resumed run goes on with them. Nothing else need be saved.
    """

    def __init__(self, pairs, batch_size, workers=0, epoch_shards=0):
        self.pairs = pairs
        self.seed = pairs.seed
        self.row_of = {}  # "TAR/KEY": the row of its photo
        self.photos_in = Counter()  # tar: how many
        for row, path in enumerate(pairs.photos.paths):
            tar = tar_of(path)
            _, key, _ = parts_of(path.relative_to(tar).as_posix())
            self.row_of[str(tar / key)] = row
            self.photos_in[tar] += 1

        shards = len(self.photos_in)
        self.shards_an_epoch = min(epoch_shards or shards, shards)
        photos = len(pairs) * self.shards_an_epoch // shards  # of an average epoch: all epochs have as many steps
        self.batch_size = min(batch_size, photos) // process_count()
        if not self.batch_size:
            raise UserError(f"{photos} training photos an epoch are too few for {process_count()} processes")
        self.steps = photos // process_count() // self.batch_size
        self.workers = min(workers, self.steps)
        # bad samples that each worker has met: in this epoch, and ever. Its own slot, so none waits for another
        self.skipped = torch.zeros(2, max(1, self.workers), dtype=torch.long).share_memory_()

    def __len__(self):
        return self.steps * self.batch_size

    @property
    def epoch(self):
        """The number of the epoch that is shown next: that of the pairs."""
        return self.pairs.epoch

    @epoch.setter
    def epoch(self, number):
        self.pairs.epoch = number

    # ------------------------------------------------------------ which photos

    def shards_of_epoch(self):
        """Return the shards that all processes together show in this epoch, in order."""
        shards = sorted(self.photos_in)
        first = (self.epoch - 1) * self.shards_an_epoch
        end = first + self.shards_an_epoch
        row = []
        lap = 0
        while len(row) < end:
            order = np.random.default_rng((self.seed, lap)).permutation(len(shards))
            shuffled = [shards[place] for place in order]
            # An epoch that the last lap began, and this one ends, is not to show a shard twice.
            begun = row[len(row) - len(row) % self.shards_an_epoch :]
            row += sorted(shuffled, key=begun.__contains__)
            lap += 1
        return row[first:end]

    def stretch(self, worker, workers):
        """Return [(shard, first, end)]: the photos, counted in each shard, that a worker of this process shows."""
        shards = self.shards_of_epoch()
        # The row of photos is a ring that begins anywhere, so each has its turn to be left over from the last batch.
        photos = sum(self.photos_in[shard] for shard in shards)
        begin = int(np.random.default_rng((self.seed, self.epoch)).integers(photos))
        first_batch = process_number() * self.steps + worker * self.steps // workers
        end_batch = process_number() * self.steps + (worker + 1) * self.steps // workers
        start = begin + first_batch * self.batch_size
        end = begin + end_batch * self.batch_size

        reads = []
        place = 0
        for shard in itertools.cycle(shards):
            if place >= end or start == end:
                return reads
            count = self.photos_in[shard]
            if place + count > start:
                reads.append((shard, max(0, start - place), min(count, end - place)))
            place += count

    # ------------------------------------------------------------ reading them

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reads = self.stretch(worker, workers)
        self.skipped[0, worker] = 0

        left = sum(end - first for _, first, end in reads)
        for lap in itertools.count():  # a second lap makes up for bad samples, which are counted in the first
            left_before = left
            for row, photo in self.shuffled_stream(reads, worker, lap):
                if left == 0:
                    return
                try:
                    item = self.pairs.item(row, photo)
                except OSError as error:
                    self.report(error, worker, lap)
                    continue
                yield item
                left -= 1
            if left == 0:
                return
            if left == left_before:
                named = ", ".join(str(shard) for shard, _, _ in reads)
                raise UserError(f"no photo of {named} can be read: leave it out of --data-dir")

    def shuffled_stream(self, reads, worker, lap):
        """Yield (row, bytes of the photo) of a `stretch`, each drawn from the `SHUFFLED` ones read last."""
        rng = random.Random(f"{self.seed} {self.epoch} {process_number()} {worker} {lap}")
        shuffle = library("webdataset").shuffle(SHUFFLED, initial=SHUFFLED, rng=rng)
        return shuffle(self.stream(reads, worker, lap))

    def stream(self, reads, worker, lap):
        """Yield (row, bytes of the photo) of a `stretch`, in its order."""
        for shard, first, end in reads:
            try:
                file = shard.open("rb")  # not by webdataset, for which a name is a URL, and `pipe:` a command
            except OSError as error:
                self.report(error, worker, lap)
                continue
            faults = []
            with file:
                for place, (row, photo) in enumerate(self.photos_of(shard, file, faults)):
                    if first <= place < end:
                        yield row, photo
                    if place + 1 == end < self.photos_in[shard]:
                        break  # the rest is another worker's
            if faults:
                self.report(f"{shard}: {faults[0]}", worker, lap)

    def photos_of(self, shard, file, faults):
        """Yield (row, bytes) of the photos of an open tar that are trained on; what is wrong with it goes to faults."""
        tars = library("webdataset").tariterators

        def go_on(error):
            faults.append(error)
            return True

        files = tars.tar_file_expander([{"url": str(shard), "stream": file}], handler=go_on)
        for sample in tars.group_by_keys(files, handler=go_on):
            key = posixpath.normpath(sample["__key__"]).lstrip("/")
            row = self.row_of.get(str(shard / key))
            if row is None:
                continue  # what lacks a half was reported before the run
            _, _, suffix = parts_of(self.pairs.photos.paths[row].name)
            if suffix in sample:  # a sample may hold several pictures: the one of this path
                yield row, sample[suffix]

    def report(self, reason, worker, lap):
        """Count what is wrong with a sample, and name the first few; what a second lap meets is known by then."""
        if lap > 0:
            return
        self.skipped[:, worker] += 1
        if self.skipped[1, worker] <= NAMED:
            print(f"skipped: {reason}", file=sys.stderr, flush=True)

    def skipped_in_epoch(self, device):
        """Return how many bad samples all processes together have met in this epoch."""
        count = self.skipped[0].sum().to(device)
        if process_count() > 1:
            torch.distributed.all_reduce(count)
        return int(count)
