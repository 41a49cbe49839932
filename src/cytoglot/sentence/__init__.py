"""Expression ⇄ ranked gene words."""
