"""Sizes, memory and batch arithmetic, without torch."""
