"""What people look at: the pages of trainings and evaluations, and the pictures on them."""
