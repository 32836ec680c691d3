"""MSANet and BAM: a meta learner in an ensemble with a base learner (MSANet, sections 4 and 5; Lang et al. 2022)."""
