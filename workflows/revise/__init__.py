"""ReVISE against supervised and preference post-training: the room of the paper."""
