"""A SLURM of two virtual nodes, and a checkout of its own to submit from."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.ranks import free_port
from tests.support.slurm_site import Site

HERE = Path(__file__).resolve().parent
DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
HOW = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"


@pytest.fixture(scope="session")
def cluster():
    """Environment of the client commands of a SLURM with the nodes v1 and v2."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing:
        pytest.skip(f"a real SLURM needs {', '.join(missing)}, not installed here: {HOW}")
    if os.geteuid():
        pytest.skip("SLURM's daemons are started as root, which this user is not")
    folder = tempfile.mkdtemp(prefix="slurm-")  # short: a socket's path may have 108 letters
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "WANDB", "ACCELERATE"))}
    environment |= {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    command = [HERE / "cluster.sh", "start", folder, "2", "2", str(free_port() - 10)]
    try:
        subprocess.run(command, check=True, env=environment)
        # As a site would set it in env.sh: these nodes share one loopback.
        yield environment | {"NETWORK_INTERFACE": "lo"}
    finally:
        subprocess.run([HERE / "cluster.sh", "stop", folder], env=environment, check=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(cluster, tmp_path) -> Site:
    return Site(tmp_path, cluster)
