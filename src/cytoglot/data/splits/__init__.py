"""Training, validation and test cells without leakage."""
