"""Makers of the assets that ship with the package."""
