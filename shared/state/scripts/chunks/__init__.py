"""Pieces of Lua that several scripts share."""
