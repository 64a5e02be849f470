"""The verbs around finetuning: finetune, merge, check."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mindplm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mindplm.data.check import Checked

_SHOWN = 20


def finetune(args: argparse.Namespace) -> None:
    """Runs `mindplm finetune`."""
    from mindplm import families, runtime

    runtime.setup_log()
    config = families.load_config(args.config, args.overrides)
    from mindplm.finetune import finetune as run

    result = run(config)
    print(f"last: {result.checkpoint}")
    if result.best is not None:
        print(f"best: {result.best}")
    print(f"loss curve: {result.curve}")
    for name, value in result.figures.items():
        print(f"{name}: {value:.4f}")
    if result.interrupted:
        raise KeyboardInterrupt


# --- merge ----------------------------------------------------------------------------------------


def add_merge(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm merge`."""
    sub.add_argument("adapter", metavar="ADAPTER", help="adapters, or a run that trains them")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="the checkpoint to write")
    sub.add_argument(
        "--base", metavar="CHECKPOINT", help="default: the one that the adapters were trained on"
    )
    sub.add_argument("--dtype", default="keep", help="float16, bfloat16, float32, keep (default)")
    sub.add_argument("--verify", action="store_true", help="read all again and compare checksums")


def merge(args: argparse.Namespace) -> None:
    """Runs `mindplm merge`."""
    from mindplm import runtime

    runtime.setup_log()
    from mindplm.checkpoint import read
    from mindplm.convert import convert_lora
    from mindplm.merged import open_adapter, open_model

    opened = open_model(args.adapter) if args.base is None else None
    if opened is not None and opened.adapter is None:
        raise ConfigError(f"{args.adapter} holds a whole model, expected adapters")
    base = opened.base if opened is not None else read(args.base)
    adapter = opened.adapter if opened is not None else open_adapter(args.adapter, base)
    assert adapter is not None
    more = {"dtype": args.dtype, "verify": args.verify}
    print(convert_lora(adapter.folder, args.out, base=base.folder, **more))


# --- check ----------------------------------------------------------------------------------------


def add_check(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm check`, beside -c."""
    sub.add_argument(
        "--data", nargs="+", default=[], metavar="FILE", help="records, or what --task reads"
    )
    sub.add_argument(
        "--valid", nargs="+", default=[], metavar="FILE", help="likewise, to be measured on"
    )
    sub.add_argument("--task", metavar="FILE", help="the task file whose shape the data have")
    sub.add_argument("-m", "--model", metavar="FOLDER", help="its vocabulary counts the tokens")
    sub.add_argument("--seq-len", type=int, default=0, metavar="N", help="tokens of a row")
    sub.add_argument("--out", metavar="FOLDER", help="write check.json, problems.txt, lengths.png")


def check(args: argparse.Namespace) -> None:
    """Runs `mindplm check`."""
    from mindplm import families, runtime

    runtime.setup_log()
    if bool(args.config) == bool(args.data):
        raise ConfigError("name either settings (-c FILE) or files (--data FILE ...)")
    tree = _settings_tree(args) if args.data else None
    if tree is None:
        config = families.load_config(args.config, args.overrides)
    else:
        config = families.config_from_dict(tree, "mindplm check", args.overrides)
    from mindplm.data import prepare
    from mindplm.data.check import check_sources

    parts = families.family(config.family)
    vocab = families.vocab_path(config.tokenizer, config.family)
    tokenizer = parts.part("tokenizer").from_file(vocab)
    kind = families.rows_of(config.family, config.head)
    found = []
    for split in prepare.SPLITS:
        sources = prepare.sources_of(config, split)
        if sources:
            settings = kind.settings(config, split)
            found.append(check_sources(sources, tokenizer, settings, kind, name=split))
    _tell(found, config.data.seq_len, args.out)


def _settings_tree(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a run on the files of the command line."""
    from mindplm.checkpoint import read

    tree: dict[str, Any] = {"family": "cpm_bee", "model": {}, "train": {"steps": 1, "output": "."}}
    room = 512
    if args.model:
        saved = read(args.model, verify=False)
        if saved.adapter is None:
            tree.update(family=saved.family, model=saved.model_config)
            tree["tokenizer"] = {"path": str(saved.folder / saved.tokenizer_files[0])}
        room = ((saved.run or {}).get("data") or {}).get("seq_len", room)

    def sources(paths: list[str]) -> list[dict[str, Any]]:
        more = {"task": args.task} if args.task else {"shape": {"kind": "records"}}
        return [{"path": path, **more} for path in paths]

    tree["data"] = {
        "folder": ".",
        "seq_len": args.seq_len or room,
        "train": sources(args.data),
        "valid": sources(args.valid),
    }
    return tree


def _tell(found: list[Checked], seq_len: int, out: str | None) -> None:
    from mindplm.data.check import report_lines

    print("\n".join(report_lines(found, seq_len)))
    problems = [problem for part in found for problem in part.problems]
    for problem in problems[:_SHOWN]:
        print(f"  {problem}")
    if len(problems) > _SHOWN:
        rest = f"{len(problems) - _SHOWN:,} more problems"
        print(f"  {rest}; --out FOLDER writes all of them" if not out else f"  {rest}")
    if out:
        _write(found, out)
    if problems:
        raise DataError(f"{len(problems):,} problems, see {out or 'above'}")


def _write(found: list[Checked], out: str) -> None:
    import io
    import json
    from dataclasses import asdict
    from pathlib import Path

    from mindplm.data.check import leak, picture
    from mindplm.files import replace_file

    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {part.name: part.to_dict() for part in found}
    if len(found) > 1:
        report["in_both"] = asdict(leak(found))
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    replace_file(root / "check.json", text.encode())
    lines = "".join(f"{problem}\n" for part in found for problem in part.problems)
    replace_file(root / "problems.txt", lines.encode("utf-8", "surrogatepass"))
    image = io.BytesIO()
    picture(found).savefig(image, format="png")
    replace_file(root / "lengths.png", image.getvalue())
    print(f"written: {root}/check.json, problems.txt, lengths.png")
