"""What training runs measure from time to time: one module for each kind of method."""
