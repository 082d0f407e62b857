"""Post-training of a causal language model on problems with checkable answers, and the rivals of ReVISE that do it.

``imitation`` holds SFT, RFT and STaR+, ``dpo`` DPO and the verifier of V-STaR, ``answers`` final answers and votes.
They share one way to write problems and pools of samples (``problems``), one loss per encoded batch (``batches``,
``objectives``), one loop (``training``) and one sampler (``baselines.sampling``). Import from the modules.
"""
