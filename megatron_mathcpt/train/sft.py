"""Packed SFT samples as a dataset: every epoch in an order of its own, computed from the sample's number."""

from pathlib import Path

import numpy as np
import torch

from megatron_mathcpt.formats.corpus_folder import NOT_TRAINED


class SftDataset:
    """The samples of an "sft" folder, repeated to `samples`; sample i is the same in every run and layout."""

    def __init__(self, folder: Path, samples: int, seed: int) -> None:
        self._tokens, self._labels, self._documents = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("tokens", "labels", "documents")
        )
        self._samples = samples
        self._seed = seed
        self._order = (-1, np.empty(0, dtype=np.int64))  # an epoch and its order

    def __len__(self) -> int:
        return self._samples

    def row(self, index: int) -> int:
        """Row of the folder's arrays that sample `index` shows."""
        epoch, place = divmod(index, len(self._tokens))
        known, order = self._order  # one name: virtual stages read in a thread each
        if epoch != known:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._tokens))
            self._order = (epoch, order)
        return int(order[place])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.row(index)
        labels = torch.from_numpy(self._labels[row].astype(np.int64))
        return {
            "tokens": torch.from_numpy(self._tokens[row].astype(np.int64)),
            "labels": labels.clamp(min=0),
            "loss_mask": (labels != NOT_TRAINED).float(),
            "position_ids": torch.arange(len(labels)),
            "documents": torch.from_numpy(self._documents[row].astype(np.int64)),
        }
