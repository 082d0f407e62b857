"""One room per paper: its card, what it reported, its arena."""
