"""What a training run does beside its steps, by what its method consumes."""

from fss.data.batch import EpisodeSpec, LabelSpec, ViewSpec
from fss.engine.tasks.episodes import EpisodeTask
from fss.engine.tasks.labels import LabelTask
from fss.engine.tasks.task import Task
from fss.engine.tasks.views import ViewTask

TASKS: dict[type, type[Task]] = {ViewSpec: ViewTask, LabelSpec: LabelTask, EpisodeSpec: EpisodeTask}
"""What a method consumes -> what a run of it does."""
