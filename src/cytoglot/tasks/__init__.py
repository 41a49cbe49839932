"""One file per question: cells ⇄ prompt and answer."""
