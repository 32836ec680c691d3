"""Where runs are looked at: what a viewer takes, and one file for each of them. `fss.engine.log` feeds them."""
