"""A record's layout: what goes in comes out, and what cannot be stored is refused by name."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import RunError
from potstill.networks.features import Features
from potstill.store.fields import DTYPES, TAPS, Layout

DTYPE_OF = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def features(batch: int = 4, seed: int = 0) -> Features:
    """All the taps, with odd lengths, so that fields must be filled up."""
    make = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=make)

    return Features(
        some(7), some(5), (some(3, 5, 5), some(2, 3, 3)), (some(1, 1, 1),), (some(2, 2, 1),), (some(7), some(7))
    )


def tensors(of: Features) -> dict[str, torch.Tensor]:
    named = {"logits": of.logits, "embedding": of.embedding}
    for tap in TAPS[2:]:
        named |= {f"{tap}.{number}": tensor for number, tensor in enumerate(getattr(of, tap))}
    return named


def check_tensors(found: Features, expected: dict[str, torch.Tensor]) -> None:
    assert tensors(found).keys() == expected.keys()
    for name, tensor in tensors(found).items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dtype", DTYPE_OF)
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_what_comes_out_is_the_cast_to_the_dtype_and_back(dtype, batch):
    given_ = features(batch)
    layout = Layout.of(features(1), TAPS, dtype)
    packed = layout.pack(given_)
    assert (packed.shape, packed.dtype) == ((batch, layout.payload_bytes), torch.uint8)
    expected = {name: tensor.to(DTYPE_OF[dtype]).float() for name, tensor in tensors(given_).items()}
    if dtype == "fp32":
        assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(given_).items())
    check_tensors(layout.unpack(packed), expected)


def test_fields_lie_where_the_layout_says():
    layout = Layout((("logits", (100,)), ("embedding", (256,))), "fp16")
    assert [(field.name, field.offset, field.bytes) for field in layout.fields] == [
        ("logits", 0, 200), ("embedding", 200, 512),
    ]  # fmt: skip
    assert layout.record_bytes == 716
    packed = layout.pack(Features(torch.full((1, 100), 2.0), torch.full((1, 256), -1.5)))[0]
    assert torch.equal(packed[:200].view(torch.float16), torch.full((100,), 2.0, dtype=torch.float16))
    assert torch.equal(packed[200:].view(torch.float16), torch.full((256,), -1.5, dtype=torch.float16))


def test_what_fills_a_field_up_is_zero():
    layout = Layout.of(features(1), ("logits", "embedding"), "fp16")
    assert [(field.offset, field.bytes) for field in layout.fields] == [(0, 14), (16, 10)]
    packed = layout.pack(features())
    assert not packed[:, 14:16].any()
    assert not packed[:, 26:28].any()
    assert layout.payload_bytes == 28


outputs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(outputs, st.integers(2, 40), st.sampled_from(sorted(DTYPE_OF)), st.integers(0, 40))
def test_fields_never_overlap_and_begin_at_words(maps, classes, dtype, k):
    shapes = (("logits", (classes,)), *((f"maps.{n}", (c, side, side)) for n, (c, side) in enumerate(maps)))
    layout = Layout(shapes, dtype, k if 1 <= k < classes else None)
    for before, after in itertools.pairwise(layout.fields):
        assert before.offset + before.bytes <= after.offset < before.offset + before.bytes + 4
    assert all(field.offset % 4 == 0 for field in layout.fields)
    assert 0 <= layout.payload_bytes - layout.fields[-1].offset - layout.fields[-1].bytes < 4
    assert layout.record_bytes % 4 == 0


@pytest.mark.parametrize("given_", [torch.float64, torch.bfloat16, torch.float16])
def test_features_of_any_floating_dtype_are_taken(given_):
    values = torch.tensor([[1.5, -2.0, 0.25]], dtype=given_)
    layout = Layout((("embedding", (3,)),), "fp32")
    found = layout.unpack(layout.pack(Features(torch.zeros(1, 0), values))).embedding
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.5, -2.0, 0.25]]


def test_maps_in_channels_last_and_features_with_gradients_are_taken():
    maps = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    layout = Layout((("maps.0", (3, 4, 4)),), "fp32")
    found = layout.unpack(layout.pack(Features(torch.zeros(2, 0), torch.zeros(2, 0), (maps,))))
    assert torch.equal(found.maps[0], maps.detach())
    assert found.maps[0].is_contiguous()
    assert not found.maps[0].requires_grad


def test_what_is_not_kept_is_empty():
    layout = Layout.of(features(1), ("maps",), "fp16")
    found = layout.unpack(layout.pack(features()))
    assert found.logits.shape == found.embedding.shape == (4, 0)
    assert len(found.maps) == 2
    assert found.preacts == found.blocks == found.peers == ()


def test_tensors_are_ordinary_and_share_no_memory():
    layout = Layout.of(features(1), TAPS, "fp32")
    packed = layout.pack(features())
    found = layout.unpack(packed)
    for tensor in tensors(found).values():
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.float32
        tensor.zero_()
    check_tensors(layout.unpack(packed), tensors(features()))


def test_packed_words_are_read_as_packed_bytes_are():
    layout = Layout.of(features(1), TAPS, "fp16", top_k=3)
    packed = layout.pack(features())
    check_tensors(layout.unpack(packed.view(torch.int32)), tensors(layout.unpack(packed)))


@pytest.mark.parametrize("dtype", DTYPE_OF)
def test_the_largest_numbers_that_fit_are_kept_and_the_next_refused(dtype):
    layout = Layout((("embedding", (2,)),), dtype)
    largest = torch.finfo(DTYPE_OF[dtype]).max
    values = torch.tensor([[largest, -largest]], dtype=torch.float64)
    assert layout.unpack(layout.pack(Features(torch.zeros(1, 0), values))).embedding.tolist() == values.tolist()
    advice = {"fp16": "store them in bf16 or fp32", "bf16": "store them in fp32", "fp32": "they fit no dtype"}[dtype]
    with pytest.raises(RunError, match=f"the teacher's embedding has values up to .*{dtype}.*: {advice}"):
        layout.pack(Features(torch.zeros(1, 0), values * 1.01))


def test_a_value_beyond_fp16_is_refused_with_the_numbers():
    layout = Layout((("maps.0", (1, 1, 2)),), "fp16")
    with pytest.raises(RunError) as caught:
        layout.pack(Features(torch.zeros(1, 0), torch.zeros(1, 0), (torch.tensor([[[[1.0, -70000.0]]]]),)))
    assert str(caught.value) == (
        "the teacher's maps.0 has values up to 70000, beyond the largest of fp16, 65504: store them in bf16 or fp32"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [None, 2])
def test_outputs_that_are_not_finite_are_refused(value, top_k):
    given_ = features()
    given_.logits[1, 2] = value
    layout = Layout.of(features(1), ("logits", "embedding"), "fp32", top_k)
    with pytest.raises(RunError, match=r"teacher's logits is not finite: 1 of 28 numbers.*none of it is stored"):
        layout.pack(given_)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Features(torch.zeros(4, 8), torch.zeros(4, 5)), r"logits is \(4, 8\), and the store keeps 4 of \(7,\)"),
        (Features(torch.zeros(4, 7), torch.zeros(3, 5)), r"embedding is \(3, 5\), and the store keeps 4 of \(5,\)"),
        (Features(torch.zeros(4, 7), torch.zeros(4)), r"embedding is \(4,\)"),
        (Features(torch.zeros(4, 7), torch.zeros(4, 5)), r"keeps the teacher's maps.0, maps.1, which these features"),
    ],
)
def test_features_of_other_shapes_are_refused(changed, said):
    taps = ("logits", "embedding", "maps") if "maps" in said else ("logits", "embedding")
    with pytest.raises(RunError, match=said):
        Layout.of(features(1), taps).pack(changed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"taps": ("logit",)}, "'logit' is none of them. Did you mean 'logits'?"),
        ({"taps": ("logits", "names")}, "'names' is none of them."),
        ({"taps": ()}, "a store must keep something: one of logits, embedding, maps"),
        ({"dtype": "float16"}, "a store keeps numbers in one of fp32, bf16, fp16, not in 'float16'"),
        ({"dtype": "int16"}, "not in 'int16'"),
        ({"top_k": 0}, "top_k=0 is no part of 7 logits: give 1 to 6, or take it out to keep all of them"),
        ({"top_k": 7}, "top_k=7 is no part of 7 logits"),
        ({"taps": ("embedding",), "top_k": 3}, "no logits are kept; take it out"),
    ],
)
def test_layouts_that_no_record_can_have_are_refused(arguments, said):
    with pytest.raises(RunError, match=re.escape(said)):
        Layout.of(features(1), **arguments)


def test_taps_that_the_teacher_does_not_show_are_refused():
    bare = Features(torch.zeros(1, 0), torch.zeros(1, 5))
    with pytest.raises(RunError, match="the teacher shows no maps, so a store cannot keep them; take maps out"):
        Layout.of(bare, ("embedding", "maps"))
    with pytest.raises(RunError, match=r"the teacher's logits has no numbers \(its shape is \(0,\)\)"):
        Layout.of(bare)


def test_a_layout_needs_no_numbers_of_the_features():
    meta = Features(torch.zeros(1, 100, device="meta"), torch.zeros(1, 256, device="meta"))
    assert Layout.of(meta) == Layout((("logits", (100,)), ("embedding", (256,))))


@pytest.mark.parametrize(("classes", "dtype"), [(100, "int16"), (1 << 15, "int16"), ((1 << 15) + 1, "int32")])
def test_the_largest_logits_keep_the_last_class(classes, dtype):
    layout = Layout((("logits", (classes,)),), "fp16", top_k=2)
    assert [(field.name, field.dtype, field.shape) for field in layout.fields] == [
        ("logits.values", "fp16", (2,)), ("logits.indices", dtype, (2,)), ("logits.rest", "fp32", ()),
    ]  # fmt: skip
    logits = torch.zeros(1, classes)
    logits[0, -1], logits[0, 0] = 9.0, 8.0
    found = layout.unpack(layout.pack(Features(logits, torch.zeros(1, 0)))).logits
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
    assert (found[0, -1], found[0, 0]) == (9.0, 8.0)


def test_top_k_holds_for_further_teachers_too():
    layout = Layout.of(features(1), ("logits", "peers"), "fp32", top_k=3)
    given_ = features()
    found = layout.unpack(layout.pack(given_))
    for ours, theirs in zip((found.logits, *found.peers), (given_.logits, *given_.peers), strict=True):
        assert torch.equal(ours.topk(3).values, theirs.topk(3).values)
        assert torch.equal(ours.topk(3).indices, theirs.topk(3).indices)
        torch.testing.assert_close(ours.logsumexp(1), theirs.logsumexp(1))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torchs_defaults_change_nothing(device, dtype):
    given_ = features()
    layout = Layout.of(given_, TAPS, "fp16", top_k=3)
    expected = tensors(layout.unpack(layout.pack(given_)))
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            found = layout.unpack(layout.pack(given_))
    finally:
        torch.set_default_dtype(torch.float32)
    check_tensors(found, expected)
    assert {tensor.device.type for tensor in tensors(found).values()} == {"cpu"}


def test_every_dtype_has_its_size():
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == {
        "fp32": 4, "fp16": 2, "bf16": 2, "int32": 4, "int16": 2,
    }  # fmt: skip
