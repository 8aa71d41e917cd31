"""`ganscope train-detector`: train a classifier of real versus generated."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ganscope.cli.console import (
    AllowPrivate,
    Device,
    DropDeclared,
    Precision,
    Seed,
    err,
    out,
    progress,
)
from ganscope.config import TrainDetectorSettings, read_json
from ganscope.errors import GanscopeError

FEW_FOUND = 0.05
"""With a smaller share of the validation fakes above its threshold a detector is warned about."""


def train_detector(
    corpora: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CORPUS", help="Corpus folders. [default: the newest one here]"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Stream to learn from instead: 'shards-{000..010}.tar', a folder of .tar, an "
            "address, or hf:owner/name[:split]; may be repeated. Needs --steps."
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="--data: where it says what is fake; __key__: the folder's name. "
            "[default: label or cls]"
        ),
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option(help="--data: pictures that have this in common are held out together."),
    ] = None,
    allow_private: AllowPrivate = False,
    detector: Annotated[
        str, typer.Option(help="Architecture: cnn, npr, patch, lite, clip, timm:NAME or vit:NAME.")
    ] = "cnn",
    recipe: Annotated[
        str,
        typer.Option(
            help="full: ours; frozen-linear: a classifier on the features of a large timm:NAME, "
            "computed once; finetune: adapters in the blocks of clip or vit:NAME; aligned: only "
            "photographs and the fakes made of them; cnndetect: blur and JPEG by chance; npr: "
            "images as they are; faces: faces of real photographs, blended onto themselves."
        ),
    ] = "full",
    masks: Annotated[
        bool,
        typer.Option(
            "--masks", help="Learn where images are fake, too, by the corpora's mask column."
        ),
    ] = False,
    fuse: Annotated[
        str | None,
        typer.Option(
            help="Join the logits of another detector that has not learned from this validation: "
            "a name, run folder or hub id, or an architecture, which is then trained first."
        ),
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Run folder. [default: runs/DETECTOR, numbered on]")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images an update.")] = 32,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the native-resolution crops. [default: the architecture's]"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="AdamW's peak. [default: the architecture's]")
    ] = None,
    rank: Annotated[int, typer.Option(help="finetune: rank of the adapters.")] = 16,
    last_blocks: Annotated[
        int, typer.Option(help="finetune: adapt only so many blocks at the end; 0: all.")
    ] = 0,
    layer_decay: Annotated[
        float,
        typer.Option(help="finetune: learning rate by this for each block towards the input."),
    ] = 1.0,
    hidden: Annotated[
        int, typer.Option(help="Width of a curved classifier beside the linear one; 0: none.")
    ] = 0,
    checkpointing: Annotated[
        bool, typer.Option(help="finetune: less memory, a third slower.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="finetune, faces and --data: updates. [default: --minutes or --epochs]"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="finetune, faces: minutes. [default: --steps or --epochs]")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Start from a weights file, a detector of the same architecture (shipped name or "
            "run folder), or 'hub' for the weights that timm publishes."
        ),
    ] = None,
    val_generator: Annotated[
        list[str] | None,
        typer.Option(help="Generator for validation only; may be repeated. [default: chosen]"),
    ] = None,
    test_generator: Annotated[
        list[str] | None,
        typer.Option(help="Generator that the detector must never meet; may be repeated."),
    ] = None,
    val_source: Annotated[
        list[str] | None,
        typer.Option(
            help="Source whose photographs are for validation only, so that thresholds hold for "
            "photographs of an unknown kind; may be repeated."
        ),
    ] = None,
    drop_declared: DropDeclared = False,
    degrade: Annotated[
        float | None,
        typer.Option(
            help="Probability that a training image is degraded, both classes alike. [default: the "
            "recipe's, 0.8 in full]"
        ),
    ] = None,
    mix: Annotated[
        float | None,
        typer.Option(
            help="Probability that a fake is mixed with the photograph that it was made from. "
            "[default: the recipe's, 0.4 in full]"
        ),
    ] = None,
    pairs: Annotated[
        float | None,
        typer.Option(
            help="Share of the fakes that were made from photographs beside them, where there are "
            "others, too. [default: the recipe's, 0.8 in full]"
        ),
    ] = None,
    hard_examples: Annotated[
        float | None,
        typer.Option(
            help="How much more often images it gets wrong are drawn; 0: all alike. [default: the "
            "recipe's, 1 in full]"
        ),
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Epochs without progress before it stops; 0: never early.")
    ] = 5,
    soup: Annotated[
        int,
        typer.Option(
            help="So many trainings from one start (--pretrained, or one training more), alike but "
            "for their seeds; their weights are averaged."
        ),
    ] = 1,
    seed: Seed = 0,
    split_seed: Annotated[
        int | None, typer.Option(help="Seed of the splits alone. [default: --seed]")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read images. [default: spare cores]", rich_help_panel="Machine"
        ),
    ] = None,
) -> None:
    """Train a detector on a corpus; leaves weights, metrics, scores and pictures in a run folder.

    An interrupted run continues when the same command is given again. For several processes:
    accelerate launch --module ganscope train-detector ...

    Examples:

      ganscope train-detector

      ganscope train-detector my_corpus/ --detector npr --epochs 20

      ganscope train-detector a/ b/ --detector timm:resnet18 --pretrained hub --test-generator sd-v1

      ganscope train-detector --recipe frozen-linear --pretrained hub --epochs 3
      --detector timm:vit_large_patch14_clip_224.openai

      ganscope train-detector --recipe finetune --detector clip --pretrained hub --minutes 20
      --batch-size 256

      ganscope train-detector --data 'shards-{000..010}.tar' --label-column cls --steps 20000

      ganscope train-detector portraits/ --recipe faces --detector lite --pretrained weights.pth
      --size 128 --minutes 30
    """
    settings = TrainDetectorSettings(
        corpora=tuple(corpora or ()),
        data=tuple(data or ()),
        label_column=label_column,
        group_column=group_column,
        allow_private=allow_private,
        detector=detector,
        recipe=recipe,
        masks=masks,
        fuse=fuse,
        out=out_,
        epochs=epochs,
        batch_size=batch_size,
        size=size,
        learning_rate=learning_rate,
        rank=rank,
        last_blocks=last_blocks,
        layer_decay=layer_decay,
        hidden=hidden,
        checkpointing=checkpointing,
        steps=steps,
        minutes=minutes,
        pretrained=pretrained,
        val_generator=tuple(val_generator or ()),
        test_generator=tuple(test_generator or ()),
        val_source=tuple(val_source or ()),
        drop_declared=drop_declared,
        degrade=degrade,
        mix=mix,
        pairs=pairs,
        hard_examples=hard_examples,
        patience=patience,
        soup=soup,
        seed=seed,
        split_seed=split_seed,
        device=device,
        precision=precision,
        workers=workers,
    )
    # What is mistyped is told before torch is loaded, which takes seconds.
    if out_ and (out_ / "config.json").exists():
        raise GanscopeError(f"{out_} holds a finished detector; name another folder with --out")
    for name in settings.corpora:
        if not name.exists():
            raise GanscopeError(f"{name}: no such corpus; make one with ganscope generate")
    if pretrained and pretrained != "hub" and not Path(pretrained).exists():
        from ganscope.folders import shipped

        if pretrained not in shipped("detectors"):
            raise GanscopeError(f"--pretrained {pretrained}: no such file")
    from ganscope.detector.training.recipes import train_detector as train
    from ganscope.devices import is_main_process

    with progress() as bar:
        run = train(settings, bar)
    if not is_main_process():
        return
    measured = read_json(run / "metrics.json")
    for split in ("val", "test"):
        if split in measured:
            err.print(f"{split}: {_figures(measured[split]['overall'])}", highlight=False)
            low = measured[split]["overall"]["auroc"]["low"]
            if low is not None and low <= 0.5:
                err.print(
                    "[yellow]no better than guessing[/yellow], as far as so few images can tell: "
                    "train for longer, or on more"
                )
    if measured["val_fakes_found"] < FEW_FOUND:
        err.print(
            f"[yellow]it will hardly ever say fake[/yellow]: {measured['val_fakes_found']:.0%} of "
            "the validation fakes reach its threshold, which photographs set: "
            f"{measured['val_photographs']:,} different ones. Add photographs (generate --real, "
            "--val-source) or epochs",
            highlight=False,
        )
    err.print("[green]trained[/green]; metrics, scores, pictures and the detector are in")
    out.print(str(run), highlight=False, soft_wrap=True)
    err.print(f"next: ganscope check photo.jpg --detector {run}", highlight=False)


def _figures(overall: dict[str, Any]) -> str:
    """AUROC with its interval, and the fakes found at 1 % false alarms."""
    auroc, found = overall["auroc"], overall["tpr_at_fpr_1"]
    if auroc["value"] is None:
        return "one class only, nothing to measure"
    interval = f" ({auroc['low']:.3f}-{auroc['high']:.3f})" if auroc["low"] is not None else ""
    return f"AUROC {auroc['value']:.3f}{interval}, TPR {found['value']:.2f} at 1 % FPR"
