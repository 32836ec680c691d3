"""The packed sets on disk: format, packing, reading and checking. This package imports nothing of fss."""
