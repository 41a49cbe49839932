"""Examples for pretraining and fine-tuning."""
