"""What an answer may be, token by token."""
