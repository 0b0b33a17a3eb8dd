"""Data sets, one file each, generated or converted from others' files: the same arguments give the same bytes."""
