"""Rematch: a reproducibility benchmark harness that replays the matches papers claim to have won.

The engine knows cards, matches, records, budgets, statistics and reports. It knows no paper, no method and no
baseline: those are named by a card (``module:Class``) and imported only inside the process that plays them.
"""
