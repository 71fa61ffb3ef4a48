"""The proof: the small model against its reference, by shapes and by numbers."""
