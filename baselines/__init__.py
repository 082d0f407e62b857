"""What the methods are measured against: each baseline is usable alone."""
