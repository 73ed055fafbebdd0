from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from export.add_style import CONFIG, add_style
from export.data import Painting
from export.publish import add_halved, publish, republish, write_card, write_halved
from export.start import starting_network
from export.to_onnx import PixelGraph, export_graph, load_graph, rounded
from export.train import Run, TrainConfig
from export.verify import GraphDiffers, verify, verify_halved
from service.errors import ModelRefused
from service.gatys.pictures import to_pixels, to_tensor
from service.gatys.transformer import (
    EPSILON,
    HALF,
    BlockConv,
    Conv,
    SubpixelConv,
    Transformer,
    TransformerConfig,
    UpConv,
    conv_weight,
    load_transformer,
    neutral_vector,
    normalise,
    spike_penalty,
    upconv_weight,
)
from service.models.session import Session
from service.models.store import ModelStore, StoredModel, file_sha256
from tests.export.conftest import PREVIEW, TARGET, TINY, TINY_STUDENT, VGG_WEIGHTS, WORDS, MakeTrainer, Published


def stored_at(target: Path) -> StoredModel:
    return ModelStore(target.parent.parent).load(target)


def test_a_painting_is_shipped_only_where_it_may_be(
    make_trainer: MakeTrainer, paintings: list[Painting], tmp_path: Path
) -> None:
    target = tmp_path / TARGET
    chosen = [replace(paintings[0], may_ship=True), paintings[1]]
    make_trainer(styles=chosen, steps=2).run()
    card = publish(Run.load(tmp_path / "run"), chosen, target, **WORDS, preview_photo=PREVIEW)
    assert stored_at(target).card.model_dump_json() == card.model_dump_json()
    assert [style.painting for style in card.styles] == ["paintings/china_temple.png", None]
    assert stored_at(target).paintings == {"china_temple": paintings[0].path.read_bytes()}
    assert card.files["paintings/china_temple.png"] == card.styles[0].painting_sha256


def test_published_model_is_accepted_and_run_by_the_service(published: Published, paintings: list[Painting]) -> None:
    target = published()
    stored = stored_at(target)
    card = stored.card
    assert [style.painting_sha256 for style in card.styles] == [file_sha256(painting.path) for painting in paintings]
    assert set(stored.vectors) == {"china_temple", "kingfisher", "photo"}
    assert card.training["steps"] == 2
    image = np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8)
    rows = np.stack([stored.vectors["china_temple"], stored.vectors["kingfisher"]])
    found = Session(stored, "cpu", 1).run(image, rows)
    with torch.no_grad():
        wanted = load_graph(target / "model.onnx")(torch.from_numpy(image), torch.from_numpy(rows)).numpy()
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1
    again = starting_network(target, ["kingfisher"])  # the store's models are their own checkpoints
    assert np.array_equal(again.vectors.detach().numpy()[0], rows[1])


@pytest.mark.parametrize("conditional", [True, False])
def test_published_model_is_given_graphs_of_fp16(published: Published, conditional: bool) -> None:
    target = published(conditional=conditional)
    card = add_halved(target, [PREVIEW])
    stored = stored_at(target)
    assert stored.card == card
    assert card.fp16.keys() == ({"model.onnx", "frozen.onnx"} if conditional else {"model.onnx"})
    assert card.quality["fp16"].keys() == card.fp16.keys()
    halved = stored.halved()
    types = {tensor.data_type for tensor in onnx.load_model_from_string(halved.graph).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    image = np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8)
    rows = np.repeat(stored.vectors["kingfisher"][None], 2, 0) if conditional else np.empty((2, 0), np.float32)
    wanted, found = (Session(model, "cpu", 1).run(image, rows).astype(int) for model in (stored, halved))
    assert np.abs(found - wanted).max() <= 2


def test_graphs_of_fp16_that_are_too_far_off_are_refused_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    vectors = neutral_vector(TINY.network)[None].numpy()
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    monkeypatch.setattr("export.verify.HALF_MEAN", 0.0)
    with pytest.raises(GraphDiffers, match="differs from fp32 by"):
        write_halved(tmp_path, PixelGraph(Transformer(TINY.network)), None, vectors, [photo])
    assert list(tmp_path.iterdir()) == []


def test_fp16_that_overflows_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = PixelGraph(Transformer(TINY.network))
    with torch.no_grad():
        graph.transformer.get_parameter("down.0.convolution.weight").mul_(1e6)  # which its norm undoes, in fp32
    export_graph(graph.halved(), tmp_path / "model.onnx")
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    vectors = neutral_vector(TINY.network)[None].numpy()
    with pytest.raises(GraphDiffers, match="differs from fp32 by"):
        verify_halved(graph, graph.halved(), tmp_path / "model.onnx", vectors, [photo])


def test_classic_model_has_its_style_built_in(published: Published, tmp_path: Path) -> None:
    target = published(conditional=False)
    card = stored_at(target).card
    assert (card.kind, len(card.inputs), card.photo_vector) == ("classic", 1, None)
    assert stored_at(target).vectors == {}
    nodes = [node.op_type for node in onnx.load(target / "model.onnx").graph.node]
    assert nodes.count("InstanceNormalization") == len(TINY.network.norm_widths)
    run = Run.load(tmp_path / "run")
    again = starting_network(target, ["china_temple"])
    kept = rounded(run.network.transformer).state_dict()
    torch.testing.assert_close(again.transformer.state_dict(), kept, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept, run.network.transformer.state_dict(), rtol=1e-3, atol=1e-5)  # as fp16 has them
    assert torch.equal(again.vectors, run.network.vectors)


def test_card_remembers_the_training_that_another_began_from(
    published: Published, make_trainer: MakeTrainer, paintings: list[Painting], tmp_path: Path
) -> None:
    target = published()
    make_trainer("again", steps=3, started_from=str(target)).run()
    card = publish(Run.load(tmp_path / "again"), paintings, target.with_name("2"), **WORDS, preview_photo=PREVIEW)
    assert card.training["before"] == stored_at(target).card.training
    assert card.training["steps"] == 3


def test_published_version_is_never_overwritten(
    published: Published, paintings: list[Painting], tmp_path: Path
) -> None:
    target = published()
    before = file_sha256(target / "model.json")
    with pytest.raises(FileExistsError, match="next version"):
        publish(Run.load(tmp_path / "run"), paintings, target, **WORDS, preview_photo=PREVIEW)
    assert file_sha256(target / "model.json") == before


def test_failed_publishing_leaves_nothing_behind(
    make_trainer: MakeTrainer, paintings: list[Painting], tmp_path: Path
) -> None:
    make_trainer("run", steps=1).run()
    target = tmp_path / "store" / "tiny" / "1"
    missing = tmp_path / "no.jpg"
    with pytest.raises(FileNotFoundError):
        publish(Run.load(tmp_path / "run"), paintings, target, **WORDS, preview_photo=missing)
    assert list(target.parent.iterdir()) == []


def test_graph_that_differs_from_torch_is_not_verified(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformer = Transformer(TINY.network)
    vectors = neutral_vector(TINY.network).repeat(3, 1).numpy()
    path = tmp_path / "model.onnx"
    export_graph(PixelGraph(transformer), path)
    assert max(comparison.largest for comparison in verify(PixelGraph(transformer), path, vectors)) <= 1
    with torch.no_grad():
        transformer.get_parameter("last.convolution.bias").add_(0.05)
    with pytest.raises(GraphDiffers, match="/255 at"):
        verify(PixelGraph(transformer), path, vectors)


@pytest.mark.parametrize("config", [TINY.network, TINY_STUDENT])
def test_exported_network_is_its_own_checkpoint(config: TransformerConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformer = Transformer(config)
    vectors = neutral_vector(config).repeat(2, 1).numpy()
    export_graph(PixelGraph(transformer), tmp_path / "model.onnx")
    verify(PixelGraph(transformer), tmp_path / "model.onnx", vectors)
    loaded = load_graph(tmp_path / "model.onnx").transformer
    assert loaded.config == config
    torch.testing.assert_close(loaded.state_dict(), transformer.state_dict(), rtol=1e-4, atol=1e-5)


def test_graph_says_nothing_of_the_machine_that_exported_it(tmp_path: Path) -> None:
    export_graph(PixelGraph(Transformer(TINY.network)), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert not [sign for sign in (b'File "', b".py", b"/export/", b"stack_trace") if sign in content]


def test_new_student_draws_no_checkerboard() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        blocks = F.pixel_unshuffle(Transformer(TINY_STUDENT)(torch.rand(1, 3, 32, 32), neutral_vector(TINY_STUDENT)), 2)
    places = blocks.reshape(3, 4, 16, 16)  # the four places of a block are equal
    torch.testing.assert_close(places, places[:, :1].expand_as(places))


def test_network_must_keep_the_stride() -> None:
    with pytest.raises(ValueError, match="stride of 4"):
        TransformerConfig((16, 32, 64), shuffle=2)


def test_subpixel_convolution_is_the_resize_convolution_it_stands_for() -> None:
    up = UpConv(5, 4, 3)
    subpixel, x = SubpixelConv(up), torch.randn(2, 5, 7, 6)
    torch.testing.assert_close(subpixel(x), up(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(upconv_weight(subpixel.convolution.weight), up.convolution.weight)


@pytest.mark.parametrize(("kernel", "shuffle"), [(5, 2), (3, 2), (3, 4)])
def test_block_convolution_is_the_one_of_the_blocks_that_it_stands_for(kernel: int, shuffle: int) -> None:
    conv = Conv(3 * shuffle**2, 7, kernel)
    strided, x = BlockConv(conv, shuffle), torch.randn(2, 3, 10 * shuffle, 7 * shuffle)
    torch.testing.assert_close(strided(x), conv(F.pixel_unshuffle(x, shuffle)), rtol=1e-4, atol=1e-5)
    assert torch.equal(conv_weight(strided.convolution.weight, shuffle), conv.convolution.weight)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_network_is_exported_anew_as_its_next_version(published: Published, conditional: bool) -> None:
    first = published(conditional=conditional)
    card = stored_at(first).card if conditional else add_halved(first, [PREVIEW])
    (first / "model.onnx").write_bytes(_another_graph_of_the_same(first / "model.onnx"))
    sums = card.files | {"model.onnx": file_sha256(first / "model.onnx")}
    before = card.model_copy(update={"files": sums, "first_graph": None if conditional else "0" * 64})
    write_card(first, before)
    card = republish(first, first.with_name("2"), [PREVIEW])
    old, new = stored_at(first), stored_at(first.with_name("2"))
    assert new.card.model_dump_json() == card.model_dump_json()
    assert card.label == "tiny@2"
    assert card.graph_sha256 != before.graph_sha256
    assert card.network_sha256 == (before.graph_sha256 if conditional else "0" * 64)
    changed = {"version", "created_at", "first_graph", "files", "quality"}
    assert card.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    assert card.quality.keys() == before.quality.keys()
    assert new.previews == old.previews
    image = np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8)
    rows = np.stack(list(old.vectors.values())[:2]) if conditional else np.empty((2, 0), np.float32)
    was, found = (Session(model, "cpu", 1).run(image, rows).astype(int) for model in (old, new))
    assert np.abs(found - was).max() <= 1
    with pytest.raises(FileExistsError, match="next version"):
        republish(first, first.with_name("2"), [PREVIEW])


def test_graphs_that_take_blocks_as_channels_are_still_read(tmp_path: Path) -> None:
    """As all of ours did once, and others' stores may have."""
    torch.manual_seed(0)
    trained = rounded(Transformer(TINY_STUDENT))
    export_graph(PixelGraph(trained), tmp_path / "model.onnx")
    model, name = onnx.load(tmp_path / "model.onnx"), "transformer.down.0.convolution.weight"
    strided = next(tensor for tensor in model.graph.initializer if tensor.name.removesuffix(HALF) == name)
    kernel = trained.get_parameter(name.removeprefix("transformer.")).detach().numpy()
    assert strided.dims != list(kernel.shape)
    strided.CopyFrom(onnx.numpy_helper.from_array(kernel, name))
    again, _ = load_transformer(model.SerializeToString(), "before")
    assert again.config == TINY_STUDENT
    torch.testing.assert_close(again.state_dict(), trained.state_dict(), rtol=1e-4, atol=1e-6)


def _another_graph_of_the_same(path: Path) -> bytes:
    model = onnx.load(path)
    model.doc_string = "other bytes"
    content: bytes = model.SerializeToString()
    return content


def test_what_does_not_stylise_is_not_exported_anew(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network that stylises"):
        republish(VGG_WEIGHTS.parent, tmp_path / "vgg16" / "2", [PREVIEW])


def test_spikes_are_penalised_and_textures_are_not() -> None:
    texture, spike = torch.randn(1, 2, 64, 64), torch.randn(1, 2, 64, 64)
    spike[..., 30:33, 30:33] = 60
    assert float(spike_penalty(texture)) < 1e-3 < 0.1 < float(spike_penalty(spike))


def test_unfinished_run_is_not_published(make_trainer: MakeTrainer, paintings: list[Painting], tmp_path: Path) -> None:
    make_trainer("run").run(until=2)
    target = tmp_path / "store" / "tiny" / "1"
    with pytest.raises(ValueError, match="2 of 6 steps"):
        publish(Run.load(tmp_path / "run"), paintings, target, **WORDS, preview_photo=PREVIEW)
    assert not target.exists()


def test_half_width_network_has_the_style_vector_of_the_recipe() -> None:
    assert TransformerConfig().style_size == 1600
    assert len(TransformerConfig().norm_widths) == 15
    assert sum(p.numel() for p in Transformer(TransformerConfig()).parameters()) == pytest.approx(0.42e6, rel=0.03)


def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = Transformer(TINY.network)
    photos, style = torch.rand(3, 3, 32, 48), neutral_vector(TINY.network) + torch.randn(3, TINY.network.style_size) / 9
    with torch.no_grad():
        together = network(photos, style)
        alone = network(photos[1:2], style[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_what_a_norm_adds_to_a_sum_is_taken_out_again_and_never_learnt() -> None:
    """A channel's mean before the norms stays where its deviation is, or half precision would lose the picture."""
    torch.manual_seed(0)
    network = Transformer(TINY.network)
    config, vector = network.config, neutral_vector(TINY.network)
    first = 2 * (sum(config.widths) + config.widths[-1])  # the numbers before those of the first block's second norm
    shifts = slice(first + config.widths[-1], first + 2 * config.widths[-1])
    photos, shifted = torch.rand(1, 3, 32, 48), vector.clone()
    shifted[shifts] += 1000
    style = shifted[None].requires_grad_()
    stylised = network(photos, style)
    torch.testing.assert_close(stylised, network(photos, vector[None]), rtol=0, atol=0)
    stylised.square().mean().backward()
    assert style.grad is not None
    assert not style.grad[0, shifts].any()
    assert style.grad[0, first : first + config.widths[-1]].all()  # its scales are learnt


def test_conditional_norm_is_instance_norm_with_the_styles_scale_and_shift() -> None:
    x, scale, shift = torch.randn(2, 3, 8, 9) * 5 + 2, torch.randn(2, 3), torch.randn(2, 3)
    plain = torch.nn.functional.instance_norm(x, eps=EPSILON)
    torch.testing.assert_close(normalise(x, scale, shift), plain * scale[..., None, None] + shift[..., None, None])


def test_pixels_survive_the_way_through_tensors() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(to_tensor(pixels)), pixels)


def test_graph_of_elsewhere_is_not_taken_for_ours(tmp_path: Path) -> None:
    foreign = onnx.helper.make_graph([], "foreign", [], [])
    onnx.save(onnx.helper.make_model(foreign), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="not exported by this pipeline"):
        load_graph(tmp_path / "model.onnx")


def small_addition() -> TrainConfig:
    return replace(TINY, conditional=False, steps=4, small_steps=4, learning_rate=CONFIG.learning_rate)


def test_added_style_is_served_and_nothing_else_changes(
    published: Published, paintings: list[Painting], content: Path, tmp_path: Path
) -> None:
    target = published()
    before = stored_at(target).card
    new = replace(paintings[0], name="new_style")
    where = (content, VGG_WEIGHTS, tmp_path / "addition")
    card = add_style(target, new, *where, config=small_addition(), preview_photo=PREVIEW)
    stored = stored_at(target)
    assert stored.card == card
    assert [style.name for style in card.styles] == ["china_temple", "kingfisher", "new_style"]
    assert {name: card.files[name] for name in before.files} == before.files
    assert not np.array_equal(stored.vectors["new_style"], stored.vectors["china_temple"])
    with pytest.raises(ValueError, match="already"):
        add_style(target, new, *where, config=small_addition(), preview_photo=PREVIEW)
    with pytest.raises(ValueError, match="not a style's name"):
        add_style(target, replace(new, name="../x"), *where, config=small_addition(), preview_photo=PREVIEW)


def test_classic_network_takes_no_more_styles(
    published: Published, paintings: list[Painting], content: Path, tmp_path: Path
) -> None:
    target = published(conditional=False)
    with pytest.raises(ValueError, match="conditional"):
        add_style(target, paintings[1], content, VGG_WEIGHTS, tmp_path / "addition", preview_photo=PREVIEW)


def test_half_written_model_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "tiny" / ".publishing-x").mkdir(parents=True)
    with pytest.raises(ModelRefused, match="holds no model"):
        ModelStore(tmp_path).folders()
