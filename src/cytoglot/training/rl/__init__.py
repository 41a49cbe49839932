"""Reinforcement learning with biological rewards (GRPO)."""
