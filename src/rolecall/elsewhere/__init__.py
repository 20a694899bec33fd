"""Configurations of other programs read as entries of the registry, with what of them has no counterpart. Pure."""
