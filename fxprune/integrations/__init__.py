"""Callbacks of training frameworks, thin over `fxprune.GradualPruner`. Each file needs its framework."""
