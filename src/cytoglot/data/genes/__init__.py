"""Gene names: vocabulary, columns, harmonization."""
