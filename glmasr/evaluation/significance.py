"""How far numbers of errors may be chance: by speaker, for recordings of one speaker go right or wrong together.

Unusual: an interval comes from a bootstrap, which draws whole speakers with replacement (Bisani and Ney 2004); that of
a difference draws both models' errors on the same speakers. The probability of a difference comes from a permutation
test: with few speakers a bootstrap calls far too many differences significant (at five of them, every sixth or so of
those that are none; tests/test_evaluation.py shows it), and a permutation test doesn't.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

DRAWS = 10_000
SEED = 0
ALL = 13  # speakers with a difference of whom all 2 ** 13 exchanges are tried
AT_ONCE = 2**18  # numbers of a block of draws, which a cache holds

Array = np.ndarray[Any, Any]


def by_group(values: Array, groups: Sequence[str]) -> Array:
    """values (A, n) or (A,) of recordings -> their sums (G, n) over each group, which come in the order of their
    names: draws don't depend on that of recordings."""
    names, places = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((len(names), *np.shape(values)[1:]))
    np.add.at(sums, places, values)
    return sums


def interval(wrong: Array, count: Array, groups: Sequence[str]) -> tuple[float, float]:
    """wrong, count (A,) of recordings -> what 95 % of the draws of groups have, in per cent; where a draw has no words,
    it says nothing. Of the differences between two models, `wrong` has those. Not finite where no draw has words."""
    sums = by_group(np.stack([wrong, count], 1).astype(float), groups)
    size, generator = len(sums), np.random.default_rng(SEED)
    rows = max(1, AT_ONCE // size)
    blocks = []
    for done in range(0, DRAWS, rows):
        places = generator.integers(size, size=(min(rows, DRAWS - done), size))
        places += size * np.arange(len(places))[:, None]
        # How often each group is in each draw: to sum the groups themselves takes six times as long.
        often = np.bincount(places.ravel(), minlength=places.size).reshape(places.shape)
        blocks.append(often @ sums)
    drawn = np.concatenate(blocks)
    drawn = drawn[drawn[:, 1] > 0]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(100 * drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return float(low), float(high)


def exchanged(differences: Array, groups: Sequence[str]) -> float:
    """differences (A,) between the errors of two models -> the probability of a sum that far from zero, if it were a
    matter of chance, for each group, which model is which: a permutation test, two-sided. All exchanges are tried where
    that is possible, else some are drawn."""
    sums = by_group(np.asarray(differences, dtype=float), groups)
    sums = sums[sums != 0]
    if len(sums) <= ALL:
        signs = np.array(list(product((1, -1), repeat=len(sums))), dtype=float).reshape(2 ** len(sums), len(sums))
        return float(np.mean(np.abs(signs @ sums) >= abs(sums.sum())))
    generator, extreme = np.random.default_rng(SEED), 0
    rows = max(1, AT_ONCE // len(sums))
    for done in range(0, DRAWS, rows):
        signs = generator.choice((-1.0, 1.0), size=(min(rows, DRAWS - done), len(sums)))
        extreme += int(np.sum(np.abs(signs @ sums) >= abs(sums.sum())))
    return (1 + extreme) / (1 + DRAWS)
