"""Where cells come from: files, folders, CELLxGENE Census, Cell2Sentence data sets."""
