"""The pages of trainings and evaluations, and the figures on them. This package draws what other packages computed.

page, tables                    a page in its three files; a table in its formats
training_page, view_section, label_section, episode_section, validation_parts   the page of a
                                training
evaluation_page, comparison_page, published, compute_hours   the pages of evaluations, and the papers' scores
curves, class_charts            figures of numbers
example_figures, episode_figures, label_map_figures, feature_figures, paint   figures of images

May import fss.train, fss.evaluate, fss.tracking, fss.methods, fss.data and what these import. Only fss.jobs,
fss.inference and launch may import it. matplotlib is imported nowhere else.
"""
