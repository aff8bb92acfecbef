"""The command `rl`. Parses, calls, and turns the user's mistakes into one sentence and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from envs import MachineryError
from rl.lab import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if not hasattr(args, "overrides") or not all("=" in word and not word.startswith("-") for word in rest):
        parser.parse_args(argv)  # says what is wrong
    elif rest:
        args.overrides += rest  # key=value may also follow an option
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return int(args.run(args))
    except (ValueError, OSError, MachineryError) as error:
        print(f"rl {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rl {args.command}: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rl", description="Agentic RL on tasks whose reward can be verified.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a policy as a configuration says")
    train.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="as in learner.lr=1e-4")
    train.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="measure a checkpoint on held-out tasks")
    evaluate.add_argument("config", metavar="CONFIG", help="a YAML file: its worlds, budgets and seeds are used")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="as in eval.tasks=200 eval.samples=8")
    evaluate.add_argument("--model", metavar="FOLDER", help="a Hugging Face folder; default: the run's last checkpoint")
    evaluate.add_argument("--worlds", metavar="NAME,…", help="only these worlds")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_eval)

    check = commands.add_parser("check", help="is a world fit to be trained on? plays it without a model")
    check.add_argument("world", metavar="WORLD", help="a world's name, its dotted module, or its Python file")
    check.add_argument(
        "overrides", nargs="*", metavar="key=value", help="arguments of the world, as in tasks=rows.jsonl"
    )
    check.add_argument(
        "--tasks", default="", metavar="N|all", help="tasks of each split (all of a finite world, 8 of an endless one)"
    )
    check.add_argument("--image", default="touchstone-sandbox:bookworm", help="of the sandboxes, as rollout.image")
    check.add_argument("--no-exploits", action="store_true", help="leave out the known exploits and the limits")
    check.add_argument(
        "--deadline", type=float, default=120.0, metavar="S", help="longest single call in seconds (120)"
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--out", metavar="FILE", help="default: runs/check/…, where rl train looks")
    check.set_defaults(run=_check)

    status = commands.add_parser("status", help="what a run waits for, and how its last minute went")
    status.add_argument("folder", metavar="RUN", help="a run folder, as runs/quickstart")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)

    report = commands.add_parser("report", help="what a run achieved: a table, and learning curves as a PNG")
    report.add_argument("folder", metavar="RUN", help="a run folder, as runs/quickstart")
    report.add_argument("--json", action="store_true", help="print JSON, draw nothing")
    report.set_defaults(run=_report)

    interference = commands.add_parser("interference", help="do a run's worlds pull the same way? gradients by world")
    interference.add_argument("folder", metavar="RUN", help="a run folder with a checkpoint, as runs/quickstart")
    interference.add_argument("--tokens", type=int, metavar="N", help="sampled tokens of each world (a batch's)")
    interference.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (the last)")
    interference.add_argument(
        "--effect", type=int, default=0, metavar="N", help="also N steps on each world alone, measured in an engine"
    )
    interference.add_argument("--tasks", type=int, metavar="N", help="held-out tasks for --effect (the run's)")
    interference.add_argument("--json", action="store_true", help="print JSON")
    interference.set_defaults(run=_interference)

    tasks = commands.add_parser("tasks", help="make tasks of real Python packages")
    tasks.add_argument("action", choices=["build"], help="build: plant faults, and take neighbouring releases apart")
    tasks.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, archive, name==version, or a .txt of these"
    )
    tasks.add_argument("--out", required=True, metavar="FOLDER", help="where the tasks go: a new folder")
    tasks.add_argument("--seed", type=int, default=0, help="the same seed makes the same tasks, byte for byte")
    tasks.add_argument("--max-per-package", type=int, default=30, metavar="N", help="planted faults of each package")
    tasks.add_argument("--sandboxes", type=int, default=2, metavar="N", help="containers at once")
    tasks.add_argument("--image", default="touchstone-tasks:bookworm", help="made by scripts/tasks-image.sh")
    tasks.add_argument("--cache", default=".cache/sources", metavar="FOLDER", help="where downloads are kept")
    tasks.add_argument("--json", action="store_true", help="print JSON")
    tasks.set_defaults(run=_tasks)

    lab = commands.add_parser("lab", help="benchmark reward shapings")
    actions = lab.add_subparsers(dest="action", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"rl.lab.{name}")
        action = actions.add_parser(name, help=module.HELP)
        module.arguments(action)
        action.set_defaults(run=module.run)

    new = commands.add_parser("new", help="begin a world of your own: one file and its test")
    new.add_argument("what", choices=["env"], metavar="env", help="a world")
    new.add_argument("name", metavar="NAME", help="what it is called, as in chess")
    new.add_argument("--tools", action="store_true", help="with tools and several turns")
    new.set_defaults(run=_new)

    sandbox = commands.add_parser("sandbox", help="look after sandboxes")
    sandbox.add_argument("action", choices=["reap"], help="reap: remove the containers of runs that are gone")
    sandbox.set_defaults(run=_sandbox)
    return parser


def _train(args: argparse.Namespace) -> int:
    from rl import config

    settings = config.load(args.config, args.overrides)
    from policy.engines import EngineError
    from rl.selftest import SelfTestFailed
    from rl.status import WaitedTooLong
    from rl.train import MachineryDown, train

    try:
        code = train(settings, resume=args.resume)
    except (MachineryDown, EngineError, SelfTestFailed, WaitedTooLong) as error:
        print(f"rl train: {error}", file=sys.stderr)
        return 1
    if code == 0:
        print(f"done; see it with: rl report {settings.folder}")
    else:
        print(f"stopped; go on with: rl train {shlex.join([args.config, *args.overrides])} --resume")
    return code


def _eval(args: argparse.Namespace) -> int:
    from rl import config

    settings = config.load(args.config, args.overrides)
    if args.worlds:
        names = args.worlds.split(",")
        if unknown := sorted(set(names) - set(settings.worlds)):
            raise ValueError(
                f"got --worlds {','.join(unknown)}; available in {args.config}: {', '.join(settings.worlds)}"
            )
        settings.worlds = {name: settings.worlds[name] for name in names}
    from rl.standalone import evaluate_model

    return evaluate_model(settings, args.model, as_json=args.json)


def _check(args: argparse.Namespace) -> int:
    from rl import config
    from rl.check import check

    settings = config.values(args.overrides)
    if args.tasks and args.tasks != "all" and not args.tasks.isdecimal():
        raise ValueError(f"got --tasks {args.tasks}; expected a number, or all")
    return check(
        args.world,
        settings,
        tasks=int(args.tasks) if args.tasks.isdecimal() else None,
        deadline_s=args.deadline,
        image=args.image,
        exploits=not args.no_exploits,
        as_json=args.json,
        out=args.out,
    )


def _status(args: argparse.Namespace) -> int:
    from rl import status

    return status.show(Path(args.folder), as_json=args.json)


def _report(args: argparse.Namespace) -> int:
    from rl import report

    return report.show(Path(args.folder), as_json=args.json)


def _interference(args: argparse.Namespace) -> int:
    from rl import interference

    if args.effect < 0 or (args.tasks is not None and (args.tasks < 1 or not args.effect)):
        raise ValueError(
            f"got --effect {args.effect} --tasks {args.tasks}; expected numbers above 0, and --tasks only with --effect"
        )
    return interference.show(
        Path(args.folder),
        tokens=args.tokens,
        step=args.step,
        as_json=args.json,
        effect_steps=args.effect,
        tasks=args.tasks,
    )


def _tasks(args: argparse.Namespace) -> int:
    from rl import tasks

    return tasks.run(
        args.sources,
        Path(args.out),
        seed=args.seed,
        most=args.max_per_package,
        sandboxes=args.sandboxes,
        image=args.image,
        cache=Path(args.cache),
        as_json=args.json,
    )


def _new(args: argparse.Namespace) -> int:
    from rl import new

    print(new.environment(args.name, tools=args.tools))
    return 0


def _sandbox(args: argparse.Namespace) -> int:
    from envs import sandboxes

    removed: list[str] = []
    for backend in sandboxes.available():
        try:
            removed += sandboxes.load(backend).reap()
        except sandboxes.SandboxUnavailable as absent:
            print(f"{backend}: {absent}", file=sys.stderr)
    print("\n".join([f"removed {name}" for name in removed] or ["nothing to remove"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
