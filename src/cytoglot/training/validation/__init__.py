"""What is measured and calibrated on validation cells."""
