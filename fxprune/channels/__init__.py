"""The domain: terms, vectors, unification, channels and groups. Knows no fx and no operation."""
