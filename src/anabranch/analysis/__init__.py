"""Arithmetic about training that needs no model: `anabranch simulate`."""
