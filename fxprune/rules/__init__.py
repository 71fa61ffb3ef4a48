"""The old place of `fxprune.ops`, for one more release."""
