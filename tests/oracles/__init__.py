"""Definitions by another route, to which the tests hold the product."""
