"""Keep ratios over the layers (Simba, section on hierarchical sparsification), and the schedules it is compared with.

The first layer always reads the whole context: nothing is known of a token before a block has seen it. From the second
layer on, with l = 0 .. Y - 1 and the linear ratios ``r_l = r_first - (r_first - r_last) l / (Y - 1)``:

``linear``
    r_l: the trapezoid, sparser above. The paper has r_first = 1 and r_last = 0.1.
``uniform``
    the mean of r_1 .. r_{Y-1} in all of them.
``reversed``
    r_{Y-l}: the same ratios upside down, sparse below and nearly dense at the top.
``step``
    r_first in the lower half, r_last in the upper.

For the same r_first and r_last all four keep the same number of tokens (``step`` only where Y is even), so that each can
be turned by the same knob. How the paper itself defines the other three is not known to us.
"""

from __future__ import annotations


def keep_ratios(schedule: str, n_layers: int, r_first: float, r_last: float, prune_every: int = 1) -> list[float]:
    """The share of the context that each layer reads.

    With ``prune_every`` p > 1 only every p-th layer sees a shorter sequence than the one below: layers l with the same
    l // p have the ratio of the first of them.
    """
    top = max(n_layers - 1, 1)
    linear = [r_first - (r_first - r_last) * layer / top for layer in range(n_layers)]
    above = linear[1:]
    if schedule == "uniform":
        above = [sum(above) / len(above)] * len(above) if above else []
    elif schedule == "reversed":
        above = above[::-1]
    elif schedule == "step":
        above = [r_first if 2 * layer < n_layers else r_last for layer in range(1, n_layers)]
    ratios = [1.0, *above]
    return [ratios[layer - layer % prune_every] for layer in range(n_layers)]


def keep_count(ratio: float, n_context: int) -> int:
    """n_l = max(1, round(r_l n_0)): context tokens that a layer reads; the last one is always among them."""
    return max(1, round(ratio * n_context))
