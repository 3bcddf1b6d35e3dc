"""Orthogonal matrices that spread what a few channels hold over all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spreading(n: int) -> Tensor:
    """An orthogonal matrix (n, n) in fp64, its first row constant, whose columns weigh all rows alike or nearly so.

    It is a Hadamard matrix, with all entries +-1 / sqrt(n), where one of order n follows from Sylvester's and Paley's
    first construction, and else the matrix of the discrete Hartley transform.
    """
    matrix = _hadamard(n)
    if matrix is None:
        angles = torch.outer(torch.arange(n), torch.arange(n)).remainder(n).double() * (2 * math.pi / n)
        return (angles.cos() + angles.sin()) / math.sqrt(n)
    return matrix * matrix[0] / math.sqrt(n)


def _hadamard(n: int) -> Tensor | None:
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if n % 4 == 0 and _is_prime(n - 1):  # then n - 1 is 3 modulo 4, and Paley's matrix I + S is of Hadamard's kind
        q = n - 1
        squares = {i * i % q for i in range(1, q)}
        character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.float64)
        skew = torch.zeros(n, n, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0] = 1, -1
        skew[1:, 1:] = character[(torch.arange(q)[:, None] - torch.arange(q)) % q]
        return skew + torch.eye(n, dtype=torch.float64)
    half = _hadamard(n // 2) if n % 2 == 0 else None
    return None if half is None else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, math.isqrt(n) + 1))


def karhunen_loeve(covariance: Tensor, keeps_mean: bool = False) -> Tensor:
    """The rotation of row vectors x -> x R that gives all channels the same variance, or nearly so.

    R = K H: first to the principal components (the Karhunen-Loeve transform), then by `spreading` to channels. Signs
    between the two are drawn with a fixed seed.

    Args:
        covariance: Of the channels, (n, n).
        keeps_mean: Whether R maps the vector of ones to itself, so that it commutes with subtracting the mean over the
            channels, as LayerNorm does.

    Returns:
        (n, n), orthogonal, fp64.

    Source: arXiv:2501.13484, section 4.2.
    """
    n = len(covariance)
    covariance, spread = (covariance + covariance.T).double() / 2, spreading(n)
    components = torch.linalg.eigh(covariance)[1].flip(1)
    if keeps_mean:
        ones = torch.full((n, 1), n**-0.5, dtype=torch.float64)
        centred = torch.eye(n, dtype=torch.float64) - ones @ ones.T
        # without the mean, the vector of ones has the eigenvalue 0; a negative one puts it last
        scale = covariance.diagonal().mean() + 1
        components = torch.linalg.eigh(centred @ covariance @ centred - scale * ones @ ones.T)[1].flip(1)
        components = torch.cat([ones, components[:, :-1]], 1)
    signs = torch.randint(2, (n,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    signs[0] = 1
    return (components * signs) @ spread
