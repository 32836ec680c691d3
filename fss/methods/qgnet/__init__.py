"""QGNet: few-shot segmentation guided by the query's own prior (QGNet, sections IV-B and V-A)."""
