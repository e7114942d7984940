"""Every setting of a recipe, typed: one file a section."""
