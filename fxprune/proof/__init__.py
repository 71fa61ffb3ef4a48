"""The proof: comparing the small model with its reference, by shapes and by numbers."""
