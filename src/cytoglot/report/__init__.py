"""Tables, figures and one HTML file from result files."""
