"""LMDBs and tars in the worker processes of a DataLoader, however these are started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_lmdb_images import ffhq
from test_tar_images import write_tar
from torch.utils.data import DataLoader, Dataset

from diticli.data.images import ImageSource, open_images


class Reds(Dataset[torch.Tensor]):
    """The red value of each image in each source, and the process that read them."""

    def __init__(self, *sources: ImageSource) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources[0])

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([*(int(source.load(index)[0, 0, 0]) for source in self.sources), os.getpid()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same_images(tmp_path: Path, method: str) -> None:
    sources = [
        open_images(str(ffhq(tmp_path / "x.lmdb")), 8),
        open_images(str(write_tar(tmp_path / "x.tar", count=12)), 8),
    ]
    for source in sources:
        source.load(0)  # open them here before the workers start
    loader = DataLoader(Reds(*sources), batch_size=3, num_workers=2, multiprocessing_context=method)
    seen = torch.cat(list(loader))
    assert seen[:, 0].tolist() == seen[:, 1].tolist() == list(range(12))
    assert len(set(seen[:, 2].tolist()) - {os.getpid()}) == 2
    assert [int(source.load(5)[0, 0, 0]) for source in sources] == [5, 5]
