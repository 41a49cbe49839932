"""Train language models of cells: supervised (pretraining, fine-tuning), by reinforcement learning, over sizes.

Read `recipe` (what can be asked for), `run` (the one entry), then `supervised`, `loop`, `validation`, `rl`, `scaling`
and `release`.
"""
