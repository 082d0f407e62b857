"""Simba against Mamba: the room of the paper."""
