"""Scores and a request become a plan: which slots of which parameters go."""
