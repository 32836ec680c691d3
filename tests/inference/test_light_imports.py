"""Loading weights for inference imports no package that only trainings, evaluations and their pages need."""

import subprocess
import sys

HEAVY = {"wandb", "tensorboard", "matplotlib", "rich", "webdataset", "skimage", "accelerate"}


def test_load_imports_no_heavy_package():
    program = "import sys, fss; fss.load; import fss.inference.segmenter; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()
