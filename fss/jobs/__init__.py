"""What is measured of a method beside its score, on the episodes that an evaluation would have."""
