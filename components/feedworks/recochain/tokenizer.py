"""RecoChain (arXiv 2604.25787): semantic IDs by residual k-means.

Level by level: cluster the residuals, subtract the centroid of each item's cluster, go on.
Shape legend: N items, V width of a vector, L levels, C codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks.errors import ModelError
from feedworks.progress import progress
from feedworks.recochain.config import TokenizerConfig
from feedworks.training.checkpoint import read_tensors, save_tensors
from feedworks.training.seed import numpy_generator
from feedworks_kernels import residual_quantize

FILE = "tokenizer.safetensors"
FloatArray = npt.NDArray[np.float32]

# Balanced clusters may exceed the mean size by this factor.
BALANCE_SLACK = 1.25


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Codebooks `(L, C, V)` and whether residuals are scaled to length 1 before each level."""

    codebooks_LCV: Tensor
    normalise: bool

    @classmethod
    def fit(cls, vector_NV: FloatArray, config: TokenizerConfig, seed: int) -> Tokenizer:
        """Fit codebooks on a sample of the items; the same arguments give the same codebooks."""
        rng = numpy_generator(seed, "tokenizer")
        count = min(config.sample_size, len(vector_NV))
        sample = vector_NV[np.sort(rng.permutation(len(vector_NV))[:count])]
        residual = np.ascontiguousarray(sample, dtype=np.float32)
        codebooks = []
        for level in progress(range(config.levels), label="fit codebooks"):
            if config.normalise:
                residual = F.normalize(torch.from_numpy(residual), dim=1).numpy()
            centroids = _kmeans(residual, config, seed + level)
            codebooks.append(torch.from_numpy(centroids))
            residual = residual - centroids[_nearest(residual, centroids)]
        return cls(torch.stack(codebooks), config.normalise)

    @property
    def num_codes(self) -> int:
        """C."""
        return self.codebooks_LCV.shape[1]

    def encode(self, vector_NV: Tensor) -> Tensor:
        """Return the codes `(N, L)` of vectors."""
        return residual_quantize(vector_NV, self.codebooks_LCV, normalise=self.normalise).codes_NL

    def errors(self, vector_NV: Tensor) -> list[float]:
        """Mean squared length of the residual after each level."""
        errors = []
        for level in range(1, len(self.codebooks_LCV) + 1):
            found = residual_quantize(vector_NV, self.codebooks_LCV[:level], normalise=self.normalise)
            errors.append(float(found.residual_ND.square().sum(dim=1).mean()))
        return errors

    def save(self, folder: Path) -> None:
        """Write one safetensors file into `folder`."""
        normalise = torch.tensor(self.normalise)
        save_tensors(folder / FILE, {"codebooks": self.codebooks_LCV, "normalise": normalise})

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, damaged or incomplete.
        """
        tensors = read_tensors(folder / FILE)
        if not {"codebooks", "normalise"} <= tensors.keys():
            raise ModelError(f"{folder / FILE} is not a tokenizer; fit it again")
        return cls(tensors["codebooks"], bool(tensors["normalise"]))


def _kmeans(residual_NV: FloatArray, config: TokenizerConfig, seed: int) -> FloatArray:
    import faiss

    codes = min(config.codes, len(residual_NV))
    kmeans = faiss.Kmeans(
        residual_NV.shape[1],
        codes,
        niter=config.iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(residual_NV),
    )
    kmeans.train(residual_NV)
    centroids = np.asarray(kmeans.centroids, dtype=np.float32).reshape(codes, -1)
    if config.balanced:
        for _ in range(config.iterations):
            centroids = _means(residual_NV, _balanced(residual_NV, centroids), centroids)
    return centroids


def _nearest(residual_NV: FloatArray, centroids_CV: FloatArray) -> npt.NDArray[np.int64]:
    codes = residual_quantize(torch.from_numpy(residual_NV), torch.from_numpy(centroids_CV)[None]).codes_NL
    return codes[:, 0].numpy()


def _balanced(residual_NV: FloatArray, centroids_CV: FloatArray) -> npt.NDArray[np.int64]:
    """Assign to the nearest centroid with room; who would lose most by a second choice comes first."""
    distance_NC = torch.cdist(torch.from_numpy(residual_NV), torch.from_numpy(centroids_CV)).numpy()
    capacity = int(np.ceil(len(residual_NV) / len(centroids_CV) * BALANCE_SLACK))
    room_C = np.full(len(centroids_CV), capacity)
    choice_NC = np.argsort(distance_NC, axis=1, kind="stable")
    ranked = np.take_along_axis(distance_NC, choice_NC[:, :2], axis=1)
    label_N = np.empty(len(residual_NV), dtype=np.int64)
    for row in np.argsort(ranked[:, 0] - ranked[:, -1], kind="stable"):
        label = choice_NC[row][np.argmax(room_C[choice_NC[row]] > 0)]
        room_C[label] -= 1
        label_N[row] = label
    return label_N


def _means(residual_NV: FloatArray, label_N: npt.NDArray[np.int64], previous_CV: FloatArray) -> FloatArray:
    count_C = np.bincount(label_N, minlength=len(previous_CV))
    total_CV = np.zeros(previous_CV.shape, dtype=np.float64)
    np.add.at(total_CV, label_N, residual_NV)
    mean_CV = total_CV / np.maximum(count_C, 1)[:, None]
    return np.where(count_C[:, None] > 0, mean_CV, previous_CV).astype(np.float32)
