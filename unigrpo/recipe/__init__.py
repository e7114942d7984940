"""Recipes: reading, checking, and what is said of a wrong one."""
