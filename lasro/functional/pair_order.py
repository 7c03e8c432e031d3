"""Whether two measures of the same samples put them into the same order.

Shape legend: N samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def same_order(a_N: Values, b_N: Values) -> tuple[int, int]:
    """Pairs that a and b both tell apart, in the same direction; and all that a tells apart.

    (i, j) with i < j and a_i != a_j counts; it is in the same order where (a_i - a_j)(b_i - b_j) > 0. Samples of which
    either is NaN are in no pair. The share is (tau + 1) / 2 of Kendall's tau where b has no ties.
    """
    known_N = np.isfinite(a_N) & np.isfinite(b_N)
    a_N, b_N = a_N[known_N], b_N[known_N]
    first, second = np.triu_indices(len(a_N), 1)
    a_P, b_P = a_N[first] - a_N[second], b_N[first] - b_N[second]
    return int((a_P * b_P > 0).sum()), int((a_P != 0).sum())
