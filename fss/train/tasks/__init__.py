"""What a training run does beside its steps, by what its method consumes."""

from fss.data.batch import EpisodeSpec, LabelSpec, ViewSpec
from fss.train.tasks.episode_task import EpisodeTask
from fss.train.tasks.label_task import LabelTask
from fss.train.tasks.task import Task
from fss.train.tasks.view_task import ViewTask

TASKS: dict[type, type[Task]] = {ViewSpec: ViewTask, LabelSpec: LabelTask, EpisodeSpec: EpisodeTask}
"""What a method consumes -> what a run of it does."""
