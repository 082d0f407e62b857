"""The papers' methods: each is usable alone."""
