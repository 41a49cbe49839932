"""Speed and science, side by side with peers and baselines."""
