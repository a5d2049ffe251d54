"""Networks run over whole slides and images."""
