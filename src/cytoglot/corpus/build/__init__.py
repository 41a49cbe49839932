"""Many files to one corpus, in steps that can be interrupted."""
