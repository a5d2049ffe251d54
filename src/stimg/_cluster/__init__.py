"""From embeddings to domains."""
