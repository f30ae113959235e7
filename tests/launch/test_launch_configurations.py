"""The configurations of launchers: each is what its name says, and those for CPUs start what they say."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from tiny_models import PROJECT, environment, make_corpus, make_encoder

from launch.stage import read_manifest

CONFIGURATIONS = sorted((PROJECT / "launch/accelerate").glob("*.yaml"))
PATIENCE_SECONDS = 240
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
FIRST_NODE, SECOND_NODE = "192.0.2.1", "192.0.2.2"

pytestmark = pytest.mark.xdist_group("launch_configurations")  # one worker, so that the reference is made once


def load(name: str) -> ClusterConfig:
    return load_config_from_file(str(PROJECT / f"launch/accelerate/{name}.yaml"))


@pytest.mark.parametrize(
    "name, kind, processes, machines",
    [
        ("one_cpu", DistributedType.NO, 1, 1),
        ("cpus", DistributedType.MULTI_GPU, 2, 1),  # and find no GPU
        ("one_gpu", DistributedType.NO, 1, 1),
        ("gpus", DistributedType.MULTI_GPU, 8, 1),
        ("nodes", DistributedType.MULTI_GPU, 16, 2),
    ],
)
def test_accelerate_reads_a_configuration(name, kind, processes, machines):
    config = load(name)
    assert (config.distributed_type, config.num_processes, config.num_machines) == (kind, processes, machines)
    assert config.use_cpu == (name == "one_cpu")
    assert config.mixed_precision == "no", "the stages choose their precision"


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_reads_a_configuration(stage, offload):
    from deepspeed.runtime.config import DeepSpeedConfig

    name = f"zero{stage}{'_offload' if offload else ''}"
    config = load(f"deepspeed_{name}")
    assert config.distributed_type == DistributedType.DEEPSPEED and not config.use_cpu
    assert config.deepspeed_config["deepspeed_config_file"] == f"launch/deepspeed/{name}.json"
    settings = json.loads((PROJECT / f"launch/deepspeed/{name}.json").read_text())
    zero = DeepSpeedConfig(settings | {"train_micro_batch_size_per_gpu": 1}).zero_config
    assert zero.stage == stage
    assert (zero.offload_optimizer is not None) == offload
    assert (zero.offload_param is not None) == (offload and stage == 3)
    assert not offload or zero.offload_optimizer.device == "cpu"
    assert zero.gather_16bit_weights_on_model_save == (stage == 3), "or ZeRO-3 would export no weights"


def test_every_configuration_is_among_these():
    deepspeed = {f"deepspeed_zero{stage}{offload}" for stage in (1, 2, 3) for offload in ("", "_offload")}
    assert {path.stem for path in CONFIGURATIONS} == {"one_cpu", "cpus", "one_gpu", "gpus", "nodes"} | deepspeed
    files = {path.stem for path in (PROJECT / "launch/deepspeed").glob("*.json")}
    assert {f"deepspeed_{name}" for name in files} == deepspeed


@pytest.mark.parametrize(
    "options, said",
    [([], "processes: 1"), (["--num_processes", "2"], "refused: accelerate launch was asked for several processes")],
)
def test_one_cpu_is_one_process_and_more_are_refused(options, said, tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(
        "from launch.errors import InputError\n"
        "from launch.loop import RunSettings, make_accelerator\n"
        "try:\n"
        "    accelerator = make_accelerator(RunSettings())\n"
        "    print('processes:', accelerator.num_processes, accelerator.device)\n"
        "except InputError as error:\n"
        "    print('refused:', error)\n"
    )
    command = [*LAUNCH, "--config_file", "launch/accelerate/one_cpu.yaml", *options, str(script)]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    assert said in done.stdout
    assert not options or "torchrun --standalone --nproc_per_node N" in done.stdout


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    encoder, corpus = make_encoder(folder / "encoder"), make_corpus(folder / "corpus", train=60, validation=11)
    arguments = [f"--encoder={encoder}", f"--data={corpus}", "--row_length=64", "--tokens_per_step=256"]
    return [*arguments, "--schedule.epochs=2", "--run.log_steps=1", "--run.precision=fp32"]


@pytest.fixture(scope="module")
def one_machine(settings, tmp_path_factory) -> Path:
    """What two processes on one machine make."""
    output = tmp_path_factory.mktemp("one-machine") / "encoder"
    wait_for([start([], "cpus", settings, output)])
    return output


def start(prefix: list[str], configuration: str, settings: list[str], output: Path, *options: str) -> subprocess.Popen:
    launcher = [*prefix, *LAUNCH, "--config_file", f"launch/accelerate/{configuration}.yaml", *options]
    return subprocess.Popen(
        [*launcher, "--num_processes", "2", "pretrain/mlm.py", *settings, f"--output={output}"],
        cwd=PROJECT,
        env=environment(GLOO_SOCKET_IFNAME="msb0" if prefix else "lo"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(processes: list[subprocess.Popen]) -> None:
    try:
        for process in processes:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.terminate()  # of which accelerate ends the stages; nothing to one that has ended
            process.communicate()


def test_processes_on_cpus_are_started(one_machine):
    training = read_manifest(one_machine)["facts"]["training"]
    assert training["processes"] == 2 and training["distributed"] == "MULTI_CPU"


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces that are linked by a cable (`veth`), and see nothing else."""
    if not shutil.which("ip"):
        pytest.skip("needs `ip` (iproute2)")
    names = [f"msb-{os.getpid()}-{end}" for end in "ab"]
    cable = ["link", "add", "msb0", "netns", names[0], "type", "veth", "peer", "name", "msb0", "netns", names[1]]
    try:
        commands = [*(["netns", "add", name] for name in names), cable]
        for name, address in zip(names, (FIRST_NODE, SECOND_NODE), strict=True):
            commands += [["-n", name, "address", "add", f"{address}/24", "dev", "msb0"]]
            commands += [["-n", name, "link", "set", device, "up"] for device in ("msb0", "lo")]
            commands += [["netns", "exec", name, "true"]]
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces are not allowed here: ip {' '.join(command)}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_nodes_train_what_two_processes_on_one_machine_do(nodes, settings, one_machine, tmp_path):
    output = tmp_path / "encoder"
    options = ["--num_machines", "2", "--main_process_ip", FIRST_NODE, "--machine_rank"]
    prefixes = [["ip", "netns", "exec", name] for name in nodes]
    wait_for(
        [start(prefix, "nodes", settings, output, *options, str(rank)) for rank, prefix in enumerate(prefixes)],
    )
    training = read_manifest(output)["facts"]["training"]
    assert training["processes"] == 2 and training["distributed"] == "MULTI_CPU"
    weights, expected = ((folder / "model.safetensors").read_bytes() for folder in (output, one_machine))
    assert weights == expected
