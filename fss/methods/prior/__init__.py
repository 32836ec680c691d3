"""QGNet's prior extractor: momentum contrast of whole images and local patches (QGNet, section IV-A)."""
