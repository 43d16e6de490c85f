"""Parsers of foreign bytes under random ones: a little of it in every run of the suite, for hours where atheris is."""
