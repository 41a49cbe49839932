"""AnnData in, checked AnnData out."""
