"""Starts a training run on the devices of this machine, as a part of one over several machines.

    python -m mindplm.launch [--verb finetune] -c FILE key=value ...

The environment says how many: NPUS devices here, NODES machines, NODE_RANK of this one, MASTER_ADDR
and MASTER_PORT of the first one, LOG_DIR. Everything that can be checked is checked before any
process starts. MindSpore's msrun starts the processes; this one watches them, hands SIGTERM and
SIGINT on so that the run saves, and when one of them dies ends all and shows its last lines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindplm import families
from mindplm.config import RunConfig, require_trainable
from mindplm.errors import USER_ERROR, ConfigError, UserError
from mindplm.launch_job import Job, Place, say


def place_of(environ: Mapping[str, str]) -> Place:
    """Reads the environment.

    Raises:
        ConfigError: A variable has no sense; it is named with what is accepted.
    """
    local, nodes = _number(environ, "NPUS", 1, 1), _number(environ, "NODES", 1, 1)
    node = _number(environ, "NODE_RANK", 0, 0)
    if node >= nodes:
        raise ConfigError(f"NODE_RANK={node}, expected 0 to NODES - 1 = {nodes - 1}")
    address = environ.get("MASTER_ADDR", "")
    if nodes > 1 and not address:
        raise ConfigError(f"NODES={nodes} needs MASTER_ADDR, the address of the first machine")
    port = _number(environ, "MASTER_PORT", 8118, 1024)
    if port > 65535:
        raise ConfigError(f"MASTER_PORT={port}, expected 1024 to 65535")
    timeout_s = _number(environ, "CLUSTER_TIMEOUT", 600, 1)
    return Place(local, nodes, node, address or "127.0.0.1", port, timeout_s)


def _number(environ: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text}, expected a whole number from {least} on")
    return int(text)


# --- checks ---------------------------------------------------------------------------------------


def load(path: str, overrides: Sequence[str], place: Place) -> tuple[RunConfig, list[str]]:
    """The settings with as many data-parallel devices as there are, and the overrides for that."""
    wanted = list(overrides)
    plain = families.load_config(path, wanted)
    require_trainable(plain, plain.runtime.device)
    if not any(text.startswith("parallel.data=") for text in wanted):
        others = plain.parallel.devices // plain.parallel.data
        if place.world % others:
            raise ConfigError(
                f"{path}: {place.world} devices (NPUS x NODES) cannot be cut into parts of "
                f"parallel.model x parallel.pipeline = {others}"
            )
        wanted.append(f"parallel.data={place.world // others}")
    config = families.load_config(path, wanted)
    if config.parallel.devices != place.world:
        raise ConfigError(
            f"{path}: the layout needs {config.parallel.devices} devices, NPUS x NODES = "
            f"{place.local} x {place.nodes} = {place.world}"
        )
    return config, wanted


def check(config: RunConfig, place: Place) -> None:
    """Everything that would otherwise fail on one process of many, minutes later.

    Raises:
        UserError: Prepared rows that are not there or do not fit, a folder that cannot be written,
            too little room on the disk, a port that is in use.
    """
    from mindplm.data import prepare

    family = families.family(config.family)
    vocab = families.vocab_path(config.tokenizer, config.family)
    tokenizer = family.part("tokenizer").from_file(vocab)
    kind = families.rows_of(config.family, config.head)
    prepare.train_rows(config, tokenizer, kind, verify=False)  # rank 0 compares checksums
    if config.data.valid:
        prepare.rows(config, tokenizer, "valid", kind, verify=False)
    output = Path(config.train.output)
    if place.node == 0:
        check_output(output, config)
    if config.train.resume not in ("auto", "never") and not Path(config.train.resume).is_dir():
        raise ConfigError(
            f"train.resume={config.train.resume}: no such folder on {socket.gethostname()}"
        )
    if place.world > 1 and place.node == 0:
        check_port(place.address, place.port)


def check_output(folder: Path, config: RunConfig) -> None:
    """The run folder can be made and has room for the checkpoints that are kept and one more."""
    from mindplm.checkpoint import RunFolder

    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"train.output={folder}: {there} is no folder that can be written")
    count = families.family(config.family).part("num_parameters")(config.model)
    one = 12 * count  # weights and two moments in fp32
    missing = max(config.train.keep_last, 1) + 1 - len(RunFolder(folder).steps())
    needed, free = max(missing, 1) * one, shutil.disk_usage(there).free
    if free < needed:
        raise ConfigError(
            f"train.output={folder}: {free:,} bytes are free, {needed:,} are needed for "
            f"{max(missing, 1)} more checkpoints of {one:,}"
        )


def check_port(address: str, port: int) -> None:
    """Nothing else listens where the processes will meet."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_ADDR={address} MASTER_PORT={port} on {socket.gethostname()}: "
                f"{error.strerror}; choose another MASTER_PORT, or an address of this machine"
            ) from None


# --- command line ---------------------------------------------------------------------------------


def run(
    config_path: str, overrides: Sequence[str], environ: Mapping[str, str], verb: str = "pretrain"
) -> int:
    """Checks, starts and watches; returns the exit status."""
    place = place_of(environ)
    config, overrides = load(config_path, overrides, place)
    check(config, place)
    arguments = [verb, "-c", config_path, *overrides]
    if place.world == 1:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "mindplm", *arguments])
    log_dir = Path(environ.get("LOG_DIR") or Path(config.train.output) / "logs")
    say(f"{place.world} processes, {place.local} of them here; logs in {log_dir}")
    stops: list[int] = []

    def note(number: int, frame: Any) -> None:
        stops.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    job = Job(place, log_dir, arguments)
    try:
        return job.watch(stops)
    except BaseException:
        job.kill()
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mindplm.launch", description=__doc__)
    parser.add_argument("-c", "--config", metavar="FILE", required=True)
    parser.add_argument("--verb", choices=("pretrain", "finetune"), default="pretrain")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    try:
        return run(args.config, args.overrides, os.environ, args.verb)
    except (UserError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
