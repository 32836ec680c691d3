"""What training runs measure at times: one file for each kind of thing that methods consume."""
