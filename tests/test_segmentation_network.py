"""MedNeXt is the published network, quicker; its peers wear the same face."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from segmentation.config import Config
from segmentation.finetune import grow_kernels
from segmentation.network import build
from segmentation.networks import cpu_convolutions, mednext
from synth.base.errors import SynthError

SMALL = Config(width=4)
OFFICIAL = {  # parameters, of which one is a dummy scalar that no computation reads
    ("s", 3): 5_553_936, ("s", 5): 5_983_568, ("b", 3): 10_529_328, ("b", 5): 10_958_960,
    ("m", 3): 17_551_984, ("m", 5): 18_263_856, ("l", 3): 61_782_288, ("l", 5): 62_995_920,
}  # fmt: skip
PEERS = {  # the narrowest each can be, and a crop that leaves its deepest level two voxels
    "unet": (4, (32, 16, 16)), "dynunet": (4, (32, 16, 16)), "attention_unet": (4, (32, 16, 16)),
    "segresnet": (4, (16, 16, 16)), "unetr": (1, (32, 16, 16)), "swin_unetr": (12, (64, 32, 32)),
}  # fmt: skip
EVERY = ["mednext_s", *PEERS]


def of(network: str) -> Config:
    width, patch = PEERS.get(network, (4, (32, 16, 16)))
    return Config(network=network, width=width, patch=patch)


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(answers: list[torch.Tensor]) -> torch.Tensor:
    """Every voxel of every scale counts, and each differently."""
    return torch.stack([(y * noise(tuple(y.shape), 9)).mean() for y in answers]).sum()


def gradients(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model.train()(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize(("size", "kernel"), OFFICIAL)
def test_official_sizes(size: str, kernel: int) -> None:
    with torch.device("meta"):
        model = build(Config(network=f"mednext_{size}", kernel=kernel))
    assert sum(p.numel() for p in model.parameters()) == OFFICIAL[size, kernel] - 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("transposed", [False, True])
def test_depthwise_gradients_are_pytorchs(stride: int, kernel: int, transposed: bool) -> None:
    kind = torch.nn.ConvTranspose3d if transposed else torch.nn.Conv3d
    layer = kind(3, 3, kernel, stride=stride, padding=kernel // 2, groups=3)
    for shape in ((2, 3, 7, 6, 5), (1, 3, 2, 1, 8)):
        x = noise(shape).requires_grad_()
        found, expected = cpu_convolutions.depthwise(x, layer), layer(x)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        weigh = noise(tuple(expected.shape), 1)
        wanted = [x, layer.weight, layer.bias]
        for a, b in zip(
            torch.autograd.grad((found * weigh).sum(), wanted),
            torch.autograd.grad((expected * weigh).sum(), wanted),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)  # sums of 400 float32 products


def test_feed_forward_is_the_layers_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_convolutions, "CHUNK", 256 * 8)  # several chunks of 256 voxels
    norm, expand = torch.nn.GroupNorm(4, 4), torch.nn.Conv3d(4, 8, 1)
    compress = torch.nn.Conv3d(8, 3, 1)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    parameters = [p for layer in (norm, expand, compress) for p in layer.parameters()]
    x = (50 + noise((2, 4, 9, 8, 10))).requires_grad_()  # a mean far above the deviation
    y = cpu_convolutions.feed_forward(x, norm, expand, compress)
    weigh = noise(tuple(y.shape), 1)
    found = torch.autograd.grad((y * weigh).sum(), [x, *parameters])
    for layer in (norm, expand, compress):
        layer.double()
    exact = x.detach().double().requires_grad_()
    expected = compress(F.gelu(expand(norm(exact))))
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=0)  # 50 has 4e-6 in float32
    parameters = [p for layer in (norm, expand, compress) for p in layer.parameters()]
    truth = torch.autograd.grad((expected * weigh.double()).sum(), [exact, *parameters])
    assert max(apart(a.double(), b) for a, b in zip(found, truth, strict=True)) < 1e-4


def test_small_mednext_is_monais_with_its_gradients() -> None:
    from monai.networks.nets import MedNeXt as Theirs

    from segmentation import legacy

    theirs = Theirs(
        init_filters=8, in_channels=4, out_channels=3, kernel_size=3, deep_supervision=True,
        use_residual_connection=True,
    )  # fmt: skip
    config, weights = legacy.convert(theirs.state_dict(), "monai.pt")
    assert config == Config(width=8)
    ours = build(config)
    ours.load_state_dict(weights)
    x = noise((1, 4, 32, 32, 32))
    for mine, other in zip(ours(x), theirs(x), strict=True):
        assert apart(mine, other) < 1e-5
    loss_of(list(theirs(x))).backward()
    expected = {legacy.our_name(k): p.grad for k, p in theirs.named_parameters()}
    for name, gradient in gradients(ours, x).items():
        wanted = expected[name]
        if name.startswith("heads.") and gradient.ndim == 5:
            wanted = wanted.transpose(0, 1)
        if name.endswith("depthwise.bias"):  # the norm removes it: zero, and rounding on both sides
            assert max(gradient.norm(), wanted.norm()) < 1e-5
        else:
            assert apart(gradient, wanted) < 1e-4, name


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("policy", ["expansion", "block"])
def test_recomputing_changes_nothing(
    policy: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cpu_convolutions, mednext):
        monkeypatch.setattr(module, "quick", lambda _: fast)
    plain, thrifty = build(SMALL), build(Config(width=4, checkpointing=policy))
    thrifty.load_state_dict(plain.state_dict())
    x = noise((1, 4, 16, 32, 16))
    for a, b in zip(plain(x), thrifty(x), strict=True):
        assert torch.equal(a, b)
    expected = gradients(plain, x)
    assert all(torch.equal(g, expected[name]) for name, g in gradients(thrifty, x).items())


def kept_bytes(model: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that the backward pass of `model` holds on to, besides its parameters."""
    held: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        answers = model(x)
    del answers
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for pointer, size in held.items() if pointer not in own)


def test_policies_keep_less(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise((1, 4, 32, 32, 32))
    quick = kept_bytes(build(Config(width=4)), x)
    for module in (cpu_convolutions, mednext):
        monkeypatch.setattr(module, "quick", lambda _: False)
    none, expansion, block = (
        kept_bytes(build(Config(width=4, checkpointing=p)), x)
        for p in ("none", "expansion", "block")
    )
    assert block < expansion < none
    assert quick < 0.6 * none


def test_zero_padded_kernels_answer_as_before() -> None:
    small, large = build(SMALL).eval(), build(Config(width=4, kernel=5)).eval()
    large.load_state_dict(grow_kernels(small.state_dict(), 5, "zeros"))
    x = noise((1, 4, 32, 16, 32))
    with torch.no_grad():
        assert apart(large(x), small(x)) < 1e-5  # sums in another order


def test_published_upkern_stretches_kernels_only() -> None:
    small, large = build(SMALL), build(Config(width=4, kernel=5))
    weights = grow_kernels(small.state_dict(), 5)
    large.load_state_dict(weights)
    for name, value in small.state_dict().items():
        if not name.endswith("depthwise.weight"):
            assert torch.equal(weights[name], value)
            continue
        stretched = weights[name]
        # trilinear from 3 to 5, corners not aligned: the centre stays, the edge is clamped
        torch.testing.assert_close(stretched[..., 2, 2, 2], value[..., 1, 1, 1])
        torch.testing.assert_close(stretched[..., 0, 4, 0], value[..., 0, 2, 0])
        between = 0.6 * value[..., 0, 1, 1] + 0.4 * value[..., 1, 1, 1]
        torch.testing.assert_close(stretched[..., 1, 2, 2], between)
    with pytest.raises(SynthError, match="cannot grow to 3"):
        grow_kernels(large.state_dict(), 3)


@pytest.mark.parametrize("network", EVERY)
def test_every_network_learns_behind_one_face(network: str) -> None:
    torch.manual_seed(0)
    config = of(network)
    model = build(config)
    x = noise((1, 4, *config.patch))
    truth = (x[:, :3] > 0).float()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        scales = model(x)
        goal = F.binary_cross_entropy_with_logits(scales[0], truth)
        losses.append(goal + sum(s.square().mean() for s in scales[1:]))
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[1] < losses[0]
    assert not any(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.ndim > 2
    )
    for level, scale in enumerate(scales):
        assert scale.shape == (1, 3, *[n // 2**level for n in config.patch])
    with torch.no_grad():
        in_training, alone = model(x)[0], model.eval()(x)
    torch.testing.assert_close(alone, in_training, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", EVERY)
def test_parts_hold_everything_once_and_lie_where_their_names_say(network: str) -> None:
    """Outer levels compute on finer grids: seen from the hooks of their convolutions."""
    config = of(network)
    model = build(config).eval()
    parts = model.parts()
    names = sorted(name for name, _ in model.named_parameters())
    coarse = [parts[part] for part in ("encoder", "bottleneck", "decoder", "heads")]
    assert all(coarse)
    assert sorted(itertools.chain.from_iterable(coarse)) == names
    finest: dict[str, int] = {}

    def watch(part: str):
        def hook(module, given, answer):
            finest[part] = max(finest.get(part, 0), math.prod(answer.shape[2:]))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.conv._ConvNd):
            module.register_forward_hook(watch(model.part_of(f"{name}.weight")))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        for home in (cpu_convolutions, mednext):
            patched.setattr(home, "quick", lambda _: False)
        model(noise((1, 4, *config.patch)))
    encoder = [finest[part] for part in sorted(finest) if part[:3] == "enc"]
    decoder = [finest[part] for part in sorted(finest) if part[:3] == "dec"]
    assert encoder == sorted(encoder, reverse=True)
    assert decoder == sorted(decoder)
    assert finest.get("bottleneck", 0) < min(encoder)  # UNETR's has no convolution
    assert decoder[-1] == math.prod(config.patch)
    assert len(encoder) == len(decoder) == (4 if network == "mednext_s" else 1)


@pytest.mark.parametrize("network", EVERY)
def test_sizes_that_do_not_fit_are_refused(network: str) -> None:
    model = build(of(network))
    with pytest.raises(SynthError, match="voxels"):
        model(torch.zeros(1, 4, 36, 36, 36))


def test_settings_that_cannot_be_are_refused_before_anything_is_built() -> None:
    with pytest.raises(SynthError, match="cannot recompute 'block'"):
        Config(network="unet", checkpointing="block")
    with pytest.raises(SynthError, match="patch") as caught:
        Config(network="swin_unetr")
    assert "multiple of 32" in str(caught.value.hint)
    with pytest.raises(SynthError, match="swin_unetr of width 10"):
        build(Config(network="swin_unetr", width=10, patch=(64, 64, 64)))
