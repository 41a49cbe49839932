"""AnnData in, AnnData or table out."""
