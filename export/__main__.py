"""python -m export train | publish | train-encoder | train-joint | publish-encoder | interpolate | evaluate | …"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from export.corpus import Corpus
    from export.train import TrainConfig, Trainer

Config = TypeVar("Config", bound="TrainConfig")

# With glibc's defaults a training step spends most of its time in page faults; they are read when a process starts.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "34359738368"}

STORE = Path("model_store")
VGG_WEIGHTS = STORE / "vgg16" / "1" / "vgg16.safetensors"
MANIFEST = Path(__file__).parent / "styles.toml"
OPTIMA = Path(__file__).parent / "optima.json"
PHOTOS = Path("tests/photos")
JUDGED_PHOTOS = tuple(
    PHOTOS / f"{name}.jpg" for name in ("astronaut", "gateway_of_india_night", "great_wall", "mariachi")
)
SHEET_PHOTOS = (PHOTOS / "neuschwanstein.jpg", PHOTOS / "kingfisher.jpg")
NETWORKS: dict[str, dict[str, Any]] = {
    "multistyle": {},
    "deep": {
        "widths": (32, 64),
        "residual_blocks": 3,
        "end_kernel": 5,
        "shuffle": 2,
        "deep_width": 128,
        "deep_blocks": 3,
    },
    "classic": {"widths": (32, 64, 128)},
    "fast": {"widths": (16, 32), "end_kernel": 5, "shuffle": 2},
}
TRAINING = ("steps", "small_steps", "small_side", "side", "part", "batch", "learning_rate", "warmup_steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it worked, 1 with a sentence on stderr when it could not."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except _expected_errors() as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.name}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _expected_errors() -> tuple[type[Exception], ...]:
    from export.fetch import WrongWeights
    from export.verify import GraphDiffers
    from service.errors import ModelRefused

    return OSError, ValueError, FloatingPointError, GraphDiffers, WrongWeights, ModelRefused


def _train(options: argparse.Namespace) -> None:
    from export.data import read_paintings
    from export.gan import GanConfig, GanTrainer
    from export.start import starting_network
    from export.train import TrainConfig, Trainer
    from service.gatys.transformer import TransformerConfig

    adversarial = options.recipe == "gan"
    config_class, trainer_class = (GanConfig, GanTrainer) if adversarial else (TrainConfig, Trainer)
    if options.adversarial_weight is not None and not adversarial:
        raise ValueError("--adversarial-weight is of --recipe gan")
    config = config_class(
        network=TransformerConfig(**NETWORKS[options.network]),
        conditional=options.network != "classic",
        seed=options.seed,
        started_from=str(options.start_from or ""),
    )
    config = _configured(config, options, "imitation_steps", "adversarial_weight")
    paintings = read_paintings(options.manifest, options.paintings, options.styles)
    names = [painting.name for painting in paintings]
    start = starting_network(options.start_from, names) if options.start_from else None
    teacher = starting_network(options.teacher, names) if options.teacher else None
    trainer = trainer_class(
        config,
        paintings,
        options.content,
        options.vgg,
        options.run,
        device=_device(options.device),
        compiled=options.compile,
        start=start,
        teacher=teacher,
    )
    _run(trainer, options)


def _train_joint(options: argparse.Namespace) -> None:
    from export.data import read_paintings
    from export.joint import JointConfig, JointTrainer
    from export.start import starting_network
    from service.gatys.transformer import TransformerConfig

    config = JointConfig(
        network=TransformerConfig(**NETWORKS[options.network]),
        seed=options.seed,
        held_out=options.held_out,
        held_out_prefix=options.held_out_prefix,
        started_from=str(options.start_from or ""),
    )
    config = _configured(config, options, "hidden", "seeing_steps", "encoded_edges")
    paintings = read_paintings(options.manifest, options.paintings, options.styles)
    names = [painting.name for painting in paintings]
    start = starting_network(options.start_from, names) if options.start_from else None
    trainer = JointTrainer(
        config,
        paintings,
        _corpus(options),
        options.content,
        options.vgg,
        options.run,
        device=_device(options.device),
        compiled=options.compile,
        start=start,
        start_encoder=options.start_encoder,
    )
    _run(trainer, options)


def _configured(config: Config, options: argparse.Namespace, *others: str) -> Config:
    """The configuration with what was given of TRAINING and `others`."""
    weights = dataclasses.replace(config.weights, checkerboard=options.checkerboard_weight)
    return dataclasses.replace(config, weights=weights, **_given(options, *TRAINING, *others))


def _interpolate(options: argparse.Namespace) -> None:
    from export.interpolate import interpolate

    interpolate(options.run, options.into, options.share, start=options.start_from, start_encoder=options.start_encoder)
    print(f"{options.into}: {options.share:g} of {options.run}, the rest of what it began with")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _run(trainer: Trainer, options: argparse.Namespace) -> None:
    trainer.run(save_every=options.save_every, sheet_photos=[photo for photo in SHEET_PHOTOS if photo.exists()])


def _corpus(options: argparse.Namespace) -> Corpus:
    from export.corpus import Corpus

    folders = [folder for folder in (options.corpus, options.paintings) if folder]
    return Corpus.read(folders, options.seed, held_out=options.held_out, prefix=options.held_out_prefix)


def _train_encoder(options: argparse.Namespace) -> None:
    from export.encoder import EncoderConfig, EncoderTrainer

    config = EncoderConfig(seed=options.seed, held_out=options.held_out, held_out_prefix=options.held_out_prefix)
    weights = dataclasses.replace(config.weights, content=options.content_weight, edges=options.edges_weight)
    config = dataclasses.replace(config, weights=weights)
    trainer = EncoderTrainer(
        _configured(config, options, "painting_side", "painting_uses", "hidden", "seeing_steps"),
        options.model,
        _corpus(options),
        options.content,
        options.vgg,
        options.run,
        device=_device(options.device),
        compiled=options.compile,
        start=options.start_from,
    )
    _run(trainer, options)


def _publish_encoder(options: argparse.Namespace) -> None:
    from export.encoder import publish_encoder

    card = publish_encoder(
        options.run,
        options.model,
        _corpus(options),
        options.encoder,
        title=options.title,
        description=options.description,
    )
    size = (options.encoder / str(card.graph)).stat().st_size / 1e6
    print(f"{card.label} makes vectors of {options.model}: {size:.1f} MB, in {options.encoder}")


def _to_onnx(options: argparse.Namespace) -> None:
    from export.publish import pixel_graph
    from export.to_onnx import export_graph
    from export.train import Run

    export_graph(pixel_graph(Run.load(options.run)), options.onnx)
    print(f"{options.onnx}: {options.onnx.stat().st_size / 1e6:.1f} MB")


def _verify(options: argparse.Namespace) -> None:
    from export.publish import pixel_graph
    from export.train import Run
    from export.verify import verify

    run = Run.load(options.run)
    vectors = run.network.vectors.detach().numpy() if run.config["conditional"] else None
    for comparison in verify(pixel_graph(run), options.onnx, vectors):
        print(f"{comparison.shape}: at most {comparison.largest}/255, {comparison.share:.2%} of the values differ")


def _publish(options: argparse.Namespace) -> None:
    from export.data import read_paintings
    from export.publish import publish
    from export.train import Run

    run = Run.load(options.run)
    card = publish(
        run,
        read_paintings(options.manifest, options.paintings, run.styles),
        options.model,
        title=options.title,
        description=options.description,
        licence=options.licence,
        preview_photo=options.preview_photo,
    )
    print(f"{card.label}: {len(card.styles)} styles, in {options.model}")
    _halve(options)


def _republish(options: argparse.Namespace) -> None:
    from export.publish import republish

    card = republish(options.model, options.into, options.photos)
    print(f"{card.label} is {options.model} with graphs of today")


def _tile(options: argparse.Namespace) -> None:
    from export.publish import add_tiling

    card = add_tiling(options.model, options.preview_photo)
    print(f"{card.label} takes large pictures in tiles")


def _halve(options: argparse.Namespace) -> None:
    from export.publish import add_halved

    card = add_halved(options.model, options.photos)
    for path, found in card.quality["fp16"].items():
        tail = f"99.9 % of the values within {found['tail']:g}/255"
        print(f"{card.label}, {card.fp16[path]}: {found['mean']:.2f}/255 from fp32 on average, {tail}")


def _evaluate(options: argparse.Namespace) -> None:
    from export import evaluate
    from export.data import read_paintings, unknown_painting
    from export.publish import write_card
    from export.sheet import contact_sheet
    from service.models.store import ModelStore

    store = ModelStore(options.model.parent.parent)
    stored = store.load(options.model)
    card = stored.card
    if card.vectors_of:
        names = card.training["held_out"][: options.held_out]
        paintings = [unknown_painting(options.paintings / name) for name in names]
        stylize, side = (
            evaluate.encoder_stylizer(*evaluate.at_work(store, stored), paintings),
            card.vectors_of.painting_side_px,
        )
    else:
        chosen = options.styles or [style.name for style in card.styles]
        paintings = read_paintings(options.manifest, options.paintings, chosen)
        stylize, side = evaluate.store_stylizer(options.model), evaluate.PAINTING_SIDE
    evaluator = evaluate.Evaluator(options.vgg, options.optima, side)
    scores, rows = evaluator.score(stylize, paintings, options.photos)
    print(evaluate.table(scores))
    if options.sheet:
        contact_sheet(options.sheet, ["", *(painting.name for painting in paintings)], rows)
    if options.into_card:
        write_card(options.model, evaluate.with_quality(card, scores))


def _add_style(options: argparse.Namespace) -> None:
    from export.add_style import add_style
    from export.data import Painting

    painting = Painting(
        options.name_, options.painting, options.title or options.name_, options.artist, options.year, options.credit
    )
    run = options.run or Path("runs") / f"add_{options.name_}"
    card = add_style(options.model, painting, options.content, options.vgg, run, preview_photo=options.preview_photo)
    print(f"{card.label} has {len(card.styles)} styles now; restart the service to serve {options.name_}")


def _fetch(options: argparse.Namespace) -> None:
    from export.fetch import fetch_vgg16, fetch_vgg19

    fetch = fetch_vgg16 if options.network == "vgg16" else fetch_vgg19
    card = fetch(options.source, options.store)
    print(f"{card.label} is in {options.store}")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        torch.backends.cudnn.benchmark = True  # a run has few shapes
        sys.setswitchinterval(5e-4)  # s: whoever feeds the GPU does not wait for those who read pictures
        torch.set_float32_matmul_precision("high")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Train style-transfer networks and publish them."
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="name")

    def command(name: str, run: Callable[[argparse.Namespace], None], help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help_, description=help_, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(command=run)
        return sub

    def names(text: str) -> list[str]:
        return text.split(",")

    train = command("train", _train, "Train a network on paintings and photos; resumes the run that its folder holds.")
    _run_option(train)
    _data_options(train)
    train.add_argument(
        "--network",
        choices=tuple(NETWORKS),
        default="multistyle",
        help="many styles in one network; that with a detour through an eighth of the resolution; Johnson's classic, "
        "for one; or the small student of the first",
    )
    train.add_argument(
        "--recipe",
        choices=("perceptual", "gan"),
        default="perceptual",
        help="losses of VGG's features, or a discriminator beside them: best with --start-from a trained network",
    )
    train.add_argument("--adversarial-weight", type=float, help="of --recipe gan, where style has 10; see GanConfig")
    train.add_argument("--styles", type=names, help="comma-separated names out of the manifest (all)")
    train.add_argument(
        "--start-from", type=Path, help="begin with the weights of another run's folder, or of a published model's"
    )
    train.add_argument("--imitation-steps", type=int, help="see TrainConfig in export/train.py")
    train.add_argument("--teacher", type=Path, help="a published model that --imitation-steps imitate")
    train.add_argument("--seed", type=int, default=0)
    _training_options(train, "TrainConfig in export/train.py")

    train_encoder = command(
        "train-encoder", _train_encoder, "Train an encoder that makes a published model's vectors from any painting."
    )
    _encoder_options(train_encoder)
    train_encoder.add_argument("--content", type=Path, required=True, help="folder of photos to train on")
    for option in ("painting-side", "painting-uses", "hidden", "seeing-steps"):
        train_encoder.add_argument(f"--{option}", type=int, help="see EncoderConfig in export/encoder.py")
    train_encoder.add_argument("--content-weight", type=float, default=1.0, help="of structure, where style has 10")
    train_encoder.add_argument("--edges-weight", type=float, default=0.0, help="of 1 - SSIM of edges, beside these")
    train_encoder.add_argument(
        "--start-from", type=Path, help="begin with another encoder: a run's folder, or a published one's"
    )
    _vgg_option(train_encoder)
    _training_options(train_encoder, "EncoderConfig in export/encoder.py")

    train_joint = command(
        "train-joint", _train_joint, "Train a network of many styles and an encoder for any other, at the same time."
    )
    _run_option(train_joint)
    _data_options(train_joint)
    _corpus_options(train_joint)
    train_joint.add_argument("--network", choices=("multistyle", "deep", "fast"), default="deep", help="as train's")
    train_joint.add_argument("--styles", type=names, help="comma-separated names out of the manifest (all)")
    train_joint.add_argument("--start-from", type=Path, help="begin with the network of a run's folder, or a published")
    train_joint.add_argument("--start-encoder", type=Path, help="begin with the encoder of a run's, or a published one")
    for option in ("hidden", "seeing-steps"):
        train_joint.add_argument(f"--{option}", type=int, help="of the encoder; see EncoderConfig in export/encoder.py")
    train_joint.add_argument("--encoded-edges", type=float, help="of 1 - SSIM of edges, where style has 10")
    _training_options(train_joint, "JointConfig in export/joint.py")

    between = command(
        "interpolate", _interpolate, "Average the weights of a finished run with those that it began with."
    )
    _run_option(between)
    between.add_argument("--start-from", type=Path, required=True, help="the network that it began with, as train's")
    between.add_argument("--start-encoder", type=Path, help="of train-joint: the encoder that it began with")
    between.add_argument("--share", type=float, default=0.5, help="of the run's weights, between 0 and 1")
    between.add_argument("--into", type=Path, required=True, help="folder of a run, not there yet, to be published")

    publish_encoder = command(
        "publish-encoder", _publish_encoder, "Export, verify and publish an encoder into the model store."
    )
    _encoder_options(publish_encoder)
    publish_encoder.add_argument("--encoder", type=Path, default=STORE / "arbitrary" / "1", help="not there yet")
    publish_encoder.add_argument("--title", default="Any painting")
    publish_encoder.add_argument("--description", default="Style vectors from paintings, in one pass")

    to_onnx = command("to-onnx", _to_onnx, "Export a run's network as an ONNX graph from pixels to pixels.")
    verify = command("verify", _verify, "Compare an exported graph with torch; fails above 1/255 of difference.")
    for sub in (to_onnx, verify):
        _run_option(sub)
        sub.add_argument("--onnx", type=Path, required=True, help="the graph's file")

    publish = command("publish", _publish, "Export, verify and publish a run into the model store.")
    _run_option(publish)
    publish.add_argument("--model", type=Path, required=True, help="<store>/<model>/<version>, not there yet")
    publish.add_argument("--manifest", type=Path, default=MANIFEST, help="titles and credits of the paintings (TOML)")
    publish.add_argument("--paintings", type=Path, required=True, help="folder of the paintings")
    publish.add_argument("--title", required=True)
    publish.add_argument("--description", default="")
    publish.add_argument("--licence", default="Apache-2.0")
    _preview_option(publish)
    _photos_option(publish)

    again = command(
        "republish", _republish, "Export a published model's graphs anew, as its next version: the same network."
    )
    again.add_argument("model", type=Path, help="<store>/<model>/<version>")
    again.add_argument("--into", type=Path, required=True, help="<store>/<model>/<version>, not there yet")
    _photos_option(again, "that the graphs of before and of now are verified on")

    tile = command("tile", _tile, "Give a published model of before the graphs that large pictures need.")
    tile.add_argument("model", type=Path, help="<store>/<model>/<version>")
    _preview_option(tile)

    halve = command("halve", _halve, "Give a published model graphs of fp16, for GPUs; fails where they differ to see.")
    halve.add_argument("model", type=Path, help="<store>/<model>/<version>")
    _photos_option(halve)

    evaluate = command(
        "evaluate", _evaluate, "Judge a published model: its loss over Gatys' optimum, artefacts, a contact sheet."
    )
    evaluate.add_argument("model", type=Path, help="<store>/<model>/<version>")
    evaluate.add_argument("--manifest", type=Path, default=MANIFEST, help="the paintings' file names (TOML)")
    evaluate.add_argument("--paintings", type=Path, required=True, help="folder of the paintings")
    evaluate.add_argument("--styles", type=names, help="comma-separated (all of the model's)")
    evaluate.add_argument("--held-out", type=int, default=6, help="of an encoder: so many paintings it never saw")
    evaluate.add_argument("--photos", type=Path, nargs="+", default=JUDGED_PHOTOS)
    evaluate.add_argument(
        "--optima", type=Path, default=OPTIMA, help="known optima; a missing one takes half a minute and more"
    )
    evaluate.add_argument("--sheet", type=Path, help="write the contact sheet here")
    evaluate.add_argument("--into-card", action="store_true", help="write the numbers into the model's card")
    _vgg_option(evaluate)

    add_style = command(
        "add-style", _add_style, "Train one more style into a published network: minutes, no new export."
    )
    add_style.add_argument("painting", type=Path)
    add_style.add_argument("--name", dest="name_", required=True, help="what requests call it: a-z, 0-9 and _")
    add_style.add_argument("--title")
    add_style.add_argument("--artist", default="unknown")
    add_style.add_argument("--year", default="unknown")
    add_style.add_argument("--credit", default="not stated", help="source and licence of the reproduction")
    add_style.add_argument("--model", type=Path, default=STORE / "multistyle" / "2")
    add_style.add_argument("--content", type=Path, required=True, help="folder of photos to train on")
    add_style.add_argument("--run", type=Path, help="folder of the checkpoint (runs/add_<name>)")
    _preview_option(add_style)
    _vgg_option(add_style)

    fetch = command("fetch", _fetch, "Put VGG weights into the store, checked by their sha256.")
    fetch.add_argument("network", choices=("vgg16", "vgg19"))
    fetch.add_argument(
        "--source",
        required=True,
        help="path or http(s) address of vgg16.safetensors, or of torchvision's vgg19-dcbb9e9d.pth",
    )
    fetch.add_argument("--store", type=Path, default=STORE)
    return parser


def _run_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="the run's folder: checkpoint, losses, sample sheets")


def _training_options(parser: argparse.ArgumentParser, configuration: str) -> None:
    for name in TRAINING:
        kind = float if name == "learning_rate" else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"see {configuration}")
    parser.add_argument(
        "--checkerboard-weight", type=float, default=0.0, help="of patterns of 2 px; see `checkerboards`"
    )
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: on a CPU twice as fast; needs a C++ compiler"
    )


def _encoder_options(parser: argparse.ArgumentParser) -> None:
    _run_option(parser)
    parser.add_argument("--model", type=Path, default=STORE / "multistyle" / "2", help="whose vectors are made")
    parser.add_argument("--paintings", type=Path, help="folder of more paintings to train on")
    _corpus_options(parser)


def _corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="folder of paintings; some of them are held out")
    parser.add_argument("--held-out", type=int, default=30, help="paintings never trained on")
    parser.add_argument("--held-out-prefix", default="wikiart_", help="of their file names")
    parser.add_argument("--seed", type=int, default=0)


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--content", type=Path, required=True, help="folder of photos to train on")
    parser.add_argument("--paintings", type=Path, required=True, help="folder of the paintings")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="titles and credits of the paintings (TOML)")
    _vgg_option(parser)


def _vgg_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vgg", type=Path, default=VGG_WEIGHTS, help="weights of the feature network")


def _preview_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preview-photo", type=Path, default=SHEET_PHOTOS[0], help="the photo that previews show")


def _photos_option(parser: argparse.ArgumentParser, use: str = "that the graphs of fp16 are judged on") -> None:
    parser.add_argument("--photos", type=Path, nargs="+", default=JUDGED_PHOTOS, help=use)


if __name__ == "__main__":
    if sys.platform == "linux" and not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "export", *sys.argv[1:]], {**os.environ, **MALLOC})
    sys.exit(main())
