"""Kept samples: read once, equal to those of the store, one copy for all ranks of a node."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from raw_samples import write_patients

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed.loader import BatchLoader, epoch_order
from hpc_tumor.data.feed.row_cache import Ranks, allocate_cache
from hpc_tumor.data.feed.rows import Rows
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    prepare_dataset(BraTSReader(), write_patients(root / "raw", 3), root / "s.zarr", workers=1)
    return root / "s.zarr"


def make_part(path: Path) -> tuple[SlicePart, list[int]]:
    """All slices of the store, and a list to which every read adds 1."""
    store = Store.open(path, threads=2)
    reads: list[int] = []
    read = store.read_slice

    def counted(*args: Any) -> None:
        reads.append(1)
        read(*args)

    store.read_slice = counted  # type: ignore[method-assign]
    slices = [(case, z) for case in range(len(store)) for z in range(store.slices(case))]
    return SlicePart(store, np.array(slices), CPU), reads


def one_pass(part: SlicePart, epoch: int, rank: int = 0, ranks: int = 1) -> dict[int, tuple[bytes, bytes]]:
    """The bytes of every sample's image and labels."""
    found = {}
    for batch in BatchLoader(part, 4, rank, ranks).batches(epoch_order(len(part), 0, epoch)):
        for position, image, target in zip(batch.positions.tolist(), batch.images, batch.targets, strict=True):
            found[position] = image.numpy().tobytes(), target.numpy().tobytes()
    return found


def test_a_second_pass_reads_nothing_and_gives_the_same(path: Path) -> None:
    plain, _ = make_part(path)
    part, reads = make_part(path)
    part.rows.kept, words = allocate_cache("host", None, part.rows.like(), len(part), CPU)
    assert "kept in the host's memory" in words
    expected = one_pass(plain, 0)
    for epoch in range(3):
        assert one_pass(part, epoch) == expected
        assert sum(reads) == len(part) == len(expected)


def test_a_pass_that_was_left_early_is_filled_up_by_the_next(path: Path) -> None:
    part, reads = make_part(path)
    part.rows.kept, _ = allocate_cache("host", None, part.rows.like(), len(part), CPU)
    loader = BatchLoader(part, 4)
    next(iter(loader.batches(epoch_order(len(part), 0, 0))))
    one_pass(part, 1)
    before = sum(reads)
    one_pass(part, 2)
    assert sum(reads) == before


def test_limits_are_kept() -> None:
    like = (np.empty((1, 1000), np.uint8),)
    assert allocate_cache("auto", 1e-3, like, 500, CPU)[0] is not None
    kept, words = allocate_cache("auto", 1e-4, like, 500, CPU)
    assert kept is None
    assert words == "read from the store in every epoch"
    assert allocate_cache("none", None, like, 500, CPU)[0] is None
    assert allocate_cache("auto", 1e-3, like, 500, CPU, taken={"host": 400_000})[0] is not None
    assert allocate_cache("auto", 1e-3, like, 500, CPU, taken={"host": 600_000})[0] is None
    with pytest.raises(
        UsageError, match=r"data.keep = 'host' needs 500.0 kB, but only 100.0 kB is available: raise data.keep"
    ):
        allocate_cache("host", 1e-4, like, 500, CPU)
    with pytest.raises(UsageError, match=r"this run trains on the CPU"):
        allocate_cache("gpu", None, like, 500, CPU)


def test_more_than_the_memory_there_is_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_tumor.data.feed.row_cache.available_memory", lambda: 1_000_000)
    like = (np.empty((1, 1000), np.uint8),)
    assert allocate_cache("auto", None, like, 400, CPU)[0] is not None
    assert allocate_cache("auto", None, like, 600, CPU)[0] is None


class Unpacking:
    """A read under way: its rows are half written until its result is asked for."""

    def __init__(self, rows: np.ndarray, into: Any):
        self.rows, self.into = rows, into
        into[0][...] = 255

    def result(self) -> None:
        self.into[0][...] = self.rows[:, None]


def test_a_row_that_another_rank_still_unpacks_is_given_whole() -> None:
    like = (np.empty((1, 8), np.uint8),)
    kept, _ = allocate_cache("host", None, like, 4, CPU)
    ranks = [Rows(lambda n: (np.empty((n, 8), np.uint8),), Unpacking, CPU) for _ in range(2)]
    for rank in ranks:
        rank.kept = kept
    wanted = np.array([2, 0])
    ready, late = (rank.request(wanted) for rank in ranks)
    ready.wait()
    assert ranks[0].take(ready)[0].numpy()[:, 0].tolist() == [2, 0]
    again = ranks[0].request(wanted)
    assert not len(again.missing)
    assert ranks[0].take(again)[0].numpy()[:, 0].tolist() == [2, 0]
    late.wait()
    assert ranks[1].take(late)[0].numpy()[:, 0].tolist() == [2, 0]


def test_ranks_of_two_nodes_have_a_copy_each() -> None:
    """Four ranks, two on each of two nodes, one after the other: each exchange knows what all of them will say."""
    like = (np.empty((1, 8), np.int16),)
    said: list[list[Any]] = [["n0", "n0", "n1", "n1"], [None] * 4, [True] * 4]
    answers = iter(said)
    assert (
        allocate_cache("auto", None, like, 4, CPU, Ranks(1, lambda _value: next(answers)))[0] is None
    )  # nobody made it


def _train_together(rank: int, path: Path, meeting: Path, queue: Any) -> None:
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)

    def exchange(value: Any) -> list[Any]:
        values: list[Any] = [None, None]
        dist.all_gather_object(values, value)
        return values

    part, reads = make_part(path)
    part.rows.kept, words = allocate_cache("host", None, part.rows.like(), len(part), CPU, Ranks(rank, exchange))
    first = one_pass(part, 0, rank, 2)
    dist.barrier()
    read_first = sum(reads)
    every = {**first, **one_pass(part, 1, rank, 2), **one_pass(part, 2, rank, 2), **one_pass(part, 3, rank, 2)}
    maps = [line.split()[:5] for line in Path("/proc/self/maps").read_text().splitlines() if "hpc-tumor-data" in line]
    queue.put((rank, words, read_first, sum(reads), every, {line[4] for line in maps}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_one_copy(path: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [
        context.Process(target=_train_together, args=(rank, path, tmp_path / "meeting", queue)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    plain, _ = make_part(path)
    expected = one_pass(plain, 0)
    inodes = set()
    for _, words, _, _, every, maps in results:
        assert "one copy for the ranks of a node" in words
        assert all(every[position] == expected[position] for position in every)
        inodes |= maps
    assert len(inodes) == 1
    # Each rank may have read the samples that the other had under way, but after the first pass nobody reads any more.
    assert all(first == total for _, _, first, total, *_ in results)
    assert len(expected) <= sum(first for _, _, first, *_ in results) <= 2 * len(expected)
