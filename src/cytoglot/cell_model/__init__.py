"""The model folder: a Hugging Face model and the `cytoglot.json` that makes it speak of cells."""
