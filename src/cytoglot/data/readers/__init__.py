"""Any file or AnnData as checked cells."""
