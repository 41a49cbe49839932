"""What is in a corpus: counts, lengths, balance, duplicates, audit."""
