"""From a method and episodes to sums of integers: dealt to ranks, cached, recorded, scored."""
