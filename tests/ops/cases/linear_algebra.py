"""Rows of linear algebra: one matrix for each channel, or channels as right sides of equations."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.cases.row import LAST, OpCase, fn

MATRICES = (2, 11, 5, 5)
STAYS: dict[str, Any] = {"expect": "refused"}


def _regular(h: torch.Tensor) -> torch.Tensor:
    return h.tril(-1) + 2 * torch.eye(5).double()


def _positive(h: torch.Tensor) -> torch.Tensor:
    return h @ h.transpose(-1, -2) + torch.eye(5).double()


def _lower(w: torch.Tensor) -> torch.Tensor:
    return w.tril(-1) + 2 * torch.eye(5).double()


LINEAR_ALGEBRA = [
    *(
        OpCase(f"{name} of right sides", fn(function, w=(5, 5)), **LAST)
        for name, function in (
            ("solve_triangular", lambda h, w: torch.linalg.solve_triangular(_lower(w), h, upper=False)),
            ("solve_triangular, upper", lambda h, w: torch.linalg.solve_triangular(_lower(w).t(), h, upper=True)),
            ("triangular_solve", lambda h, w: torch.ops.aten.triangular_solve(h, _lower(w), False)[0]),
            ("solve", lambda h, w: torch.linalg.solve(_positive(w), h)),
            ("cholesky_solve", lambda h, w: torch.cholesky_solve(h, torch.linalg.cholesky(_positive(w)))),
            ("lu_solve", lambda h, w: torch.linalg.lu_solve(*torch.linalg.lu_factor(_positive(w)), h)),
        )
    ),
    *(
        OpCase(f"{name} of right sides before the matrix", fn(function, w=(5, 5)), (2, 11, 5))
        for name, function in (
            (
                "solve_triangular",
                lambda h, w: torch.linalg.solve_triangular(_lower(w), h, upper=False, left=False),
            ),
            ("solve", lambda h, w: torch.linalg.solve(_positive(w), h, left=False)),
        )
    ),
    *(
        OpCase(f"{name} of a matrix for each channel", fn(function), MATRICES)
        for name, function in (
            ("solve_triangular", lambda h: torch.linalg.solve_triangular(_regular(h), h.sin(), upper=False)),
            (
                "solve_triangular, unit diagonal,",
                lambda h: torch.linalg.solve_triangular(h, h.cos(), upper=True, unitriangular=True),
            ),
            ("solve", lambda h: torch.linalg.solve(_positive(h), h)),
            ("solve of vectors", lambda h: torch.linalg.solve(_positive(h), h[..., 0])),
            ("inverse", lambda h: torch.linalg.inv(_positive(h))),
            ("cholesky", lambda h: torch.linalg.cholesky(_positive(h))),
            ("cholesky_inverse", lambda h: torch.cholesky_inverse(torch.linalg.cholesky(_positive(h)))),
            ("lu_factor", lambda h: torch.linalg.lu_factor(_positive(h))[0]),
            ("lu_solve", lambda h: torch.linalg.lu_solve(*torch.linalg.lu_factor(_positive(h)), h)),
            ("slogdet", lambda h: torch.linalg.slogdet(_positive(h))[1]),
            ("det", lambda h: torch.linalg.det(_positive(h))),
            ("qr", lambda h: torch.linalg.qr(_positive(h))[1].abs()),
            ("svd", lambda h: torch.linalg.svdvals(h)),
            ("eigh", lambda h: torch.linalg.eigvalsh(h + h.transpose(-1, -2))),
            ("matrix_exp", lambda h: torch.linalg.matrix_exp(0.1 * h)),
        )
    ),
    OpCase(
        "solve of one matrix for several right sides",
        fn(lambda h, w: torch.linalg.solve_triangular(_lower(w), h, upper=False), w=(5, 5)),
        (2, 11, 5, 3),
    ),
    OpCase(
        "solve of equations that are channels",
        fn(
            lambda h, w: torch.linalg.solve_triangular(w.tril() + 3 * torch.eye(11).double(), h, upper=False),
            w=(11, 11),
        ),
        (2, 11, 3),
        says=("aten::linalg_solve_triangular", "a matrix of linear algebra runs over this dimension"),
        **STAYS,
    ),
    OpCase(
        "inverse of matrices that would be zero",
        fn(lambda h: torch.linalg.inv(h)),
        MATRICES,
        says=("aten::linalg_inv_ex", "a matrix of zeros"),
        **STAYS,
    ),
    OpCase(
        "matrix_exp of channels",
        fn(lambda h: torch.linalg.matrix_exp(0.1 * h)),
        (2, 11, 11),
        says=("aten::linalg_matrix_exp", "a matrix of linear algebra runs over this dimension"),
        **STAYS,
    ),
]
