"""Where runs are looked at: what a viewer takes, and one file for each of them. `fss.tracking.log` feeds them."""
