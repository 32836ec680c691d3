"""The measurements of bench/gpu.py, one topic a file; each file has a `PART`."""
