"""Networks, layers and weights in pure torch: no method, no data set and no process group is known here."""
