"""The stream graph laid out: the single owner of masks and positions."""
