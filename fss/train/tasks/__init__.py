"""The tasks of training runs, one for each kind of method."""

from fss.data.batch import EpisodeSpec, LabelSpec, ViewSpec
from fss.train.tasks.episode_task import EpisodeTask
from fss.train.tasks.label_task import LabelTask
from fss.train.tasks.task import Task
from fss.train.tasks.view_task import ViewTask

__all__ = ["TASKS", "EpisodeTask", "LabelTask", "Task", "ViewTask"]

TASKS: dict[type[ViewSpec] | type[LabelSpec] | type[EpisodeSpec], type[Task]] = {
    ViewSpec: ViewTask,
    LabelSpec: LabelTask,
    EpisodeSpec: EpisodeTask,
}
"""Type of a method's `batch_spec` -> the task of its training run."""
