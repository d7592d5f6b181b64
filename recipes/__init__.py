"""Recipes that build the bases shipped with the package."""
