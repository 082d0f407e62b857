"""MAC against online fine-tuning: the room of the paper."""
