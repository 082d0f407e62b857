"""ReMoDetect against detectors of generated text: the room of the paper."""
