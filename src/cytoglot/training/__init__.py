"""Train language models of cells: supervised (pretraining, fine-tuning), by reinforcement learning, over sizes.

Read `recipe` (what can be asked for), `run` (the one entry), `job` and `cells` (what is trained on), then
`supervised.train` (the whole way from a recipe to a model), `loop`, `validation`, `rl`, `scaling` and `release`.
"""
