"""The page Volume: slices, materials in colour, and the whole in three dimensions."""
