"""How the loops r >= 2 divide a change among them: shares of its sum, and where each token's change peaks."""

import torch
from torch import Tensor


def change_shares(changes: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators [R-1] and denominator (scalar) of the shares of loops 2..R in the sum of `changes` [R-1, n].

    The share of a loop is a ratio of sums over tokens, not a mean of the tokens' ratios: a token that hardly changes
    does not count as much as one that changes a lot.
    """
    totals = changes.double().sum(dim=-1)
    return totals, totals.sum()


def peak_shares(changes: Tensor) -> Tensor:
    """0 or 1 [R-1, n]: whether the change [R-1, n] of a token is largest in a loop; the earlier one of equal ones."""
    loops = torch.arange(len(changes), device=changes.device)
    return (changes.argmax(dim=0) == loops[:, None]).to(torch.float64)
