"""Effective rank (Roy and Vetterli 2007): exp of the entropy of a matrix's normalised singular values.

    s_k = sigma_k / sum sigma,    rank = exp(- sum s_k ln s_k)

1 for a matrix of rank one, min(n, d) when all singular values are equal. It cannot exceed the number of rows, so short
documents have small ranks.
"""

import torch
from torch import Tensor


def effective_rank(matrix: Tensor) -> Tensor:
    """[...] of matrices [..., n, d], not all zero.

    From the eigenvalues of the smaller Gram matrix in fp64, at most [min(n, d), min(n, d)]. Eigenvalues below
    eps * min(n, d) * the largest are rounding and count as zero: singular values below 1e-6 of the largest, at worst.
    """
    matrix = matrix.double()
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.mT
    eigenvalues = torch.linalg.eigvalsh(matrix @ matrix.mT)
    rounding = torch.finfo(torch.float64).eps * matrix.shape[-2] * eigenvalues[..., -1:]
    singular_values = torch.where(eigenvalues > rounding, eigenvalues, 0.0).sqrt()
    shares = singular_values / singular_values.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp()
