"""DML against the authors' numbers for two and three networks, a naive second writing, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.ce import ce
from potstill.methods.dml import DML, dml
from potstill.methods.kd import kd
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 2, 2), (3, 1, 5), (4, 7, 100)]  # networks, batch, classes


def softmax(row: list[float]) -> list[float]:
    highest = max(row)
    powers = [math.exp(z - highest) for z in row]
    return [p / sum(powers) for p in powers]


def naive_dml(student: Tensor, peers: list[Tensor], variant: str) -> float:
    """Peer by peer, image by image, class by class."""
    total = 0.0
    for peer in peers:
        for z_i, z_j in zip(student.tolist(), peer.tolist(), strict=True):
            for p_i, p_j in zip(softmax(z_i), softmax(z_j), strict=True):
                if variant == "code":
                    total += p_j * math.log(1e-8 + p_j / (p_i + 1e-8)) / len(student)
                else:
                    total += p_j * math.log(p_j / p_i) / len(student) / len(peers)
    return total


def networks(k: int, b: int, c: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(k + b + c)
    return [2 * torch.randn(b, c, generator=generator, dtype=dtype) for _ in range(k)]


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def setting(student: int = 5, teacher: int = 5) -> Setting:
    return Setting(FeatureSpec(student, 4), FeatureSpec(teacher, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["dml", "dml3"])
def test_the_authors_numbers(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    k = case.case["hyperparameters"]["K"]
    logits = [case.inputs[f"net{i}.logits"].requires_grad_() for i in range(k)]
    b, c = logits[0].shape
    method, embedding = DML(setting(c, c), variant="code"), torch.zeros(b, 4, dtype=dtype)
    totals = []
    for i, own in enumerate(logits):
        hard = ce(own, case.inputs["labels"])
        totals.append(hard + dml(own, logits[:i] + logits[i + 1 :], variant="code"))
        totals[i].backward()  # leaves nothing in the peers, or their own gradients below were wrong
        case.check(f"out.loss.net{i}.ce", hard)
        case.check(f"out.loss.net{i}.total", totals[i])
        for j, peer in enumerate(logits):
            if j != i:
                loss = method(Features(own, embedding), Features(peer, embedding), batch_of(b))
                case.check(f"out.loss.net{i}.kl_from_net{j}", loss)
    for i, own in enumerate(logits):
        case.check(f"out.grad.net{i}.logits", own.grad)
    case.check("out.loss.total", torch.stack(totals).sum())
    assert case.all_compared()


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize(("k", "b", "c"), SIZES)
def test_agrees_with_a_naive_writing(k: int, b: int, c: int, variant: str):
    own, *peers = networks(k, b, c)
    assert dml(own, peers, variant).item() == pytest.approx(naive_dml(own, peers, variant), rel=1e-9)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_gradients_are_those_of_finite_differences(variant: str):
    own, *peers = networks(3, 4, 6)
    assert torch.autograd.gradcheck(lambda x: dml(x, peers, variant), own.requires_grad_())


def test_the_code_sums_what_the_paper_averages():
    own, *peers = networks(4, 5, 10)
    torch.testing.assert_close(dml(own, peers, "code"), 3 * dml(own, peers, "paper"), rtol=1e-5, atol=0)
    torch.testing.assert_close(dml(own, peers[:1], "code"), dml(own, peers[:1], "paper"), rtol=1e-5, atol=0)


def test_the_paper_is_the_default_of_both():
    own, *peers = networks(3, 4, 6)
    assert torch.equal(dml(own, peers), dml(own, peers, "paper"))
    assert not torch.equal(dml(own, peers), dml(own, peers, "code"))
    embedding = torch.zeros(4, 4)
    loss = DML(setting(6, 6))(Features(own, embedding), Features(peers[0], embedding), batch_of(4))
    assert torch.equal(loss, kd(own, peers[0], temperature=1.0))


def test_what_the_loss_does_not_see():
    own, *peers = networks(3, 6, 8)
    loss = dml(own, peers)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(dml(own + 7, peers[::-1]), loss)
    torch.testing.assert_close(dml(own[order], [peer[order] for peer in peers]), loss)
    torch.testing.assert_close(dml(own, torch.stack(peers)), loss)
    assert dml(own, [own, own]).item() == pytest.approx(0, abs=1e-12)


def test_very_large_logits_stay_numbers():
    z = torch.tensor([[1e4, -1e4, 0.0]])
    exact, code = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = dml(exact, [-z])
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert exact.grad.tolist() == [[1.0, -1.0, 0.0]]
    loss = dml(code, [-z], "code")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1e8))
    assert code.grad.tolist() == [[0.0, 0.0, 0.0]]  # where p_i is below 1e-8 the code has no gradient


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_zero_logits_give_numbers(variant: str):
    own = torch.zeros(3, 4, requires_grad=True)
    loss = dml(own, [torch.zeros(3, 4)] * 2, variant)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(own.grad, torch.zeros(3, 4), rtol=0, atol=1e-7)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_half_precision_logits_are_computed_in_full(variant: str):
    own, *peers = (z.bfloat16() for z in networks(3, 4, 100, torch.float32))
    loss = dml(own, peers, variant)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dml(own.float(), [peer.float() for peer in peers], variant))


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_no_gradient_reaches_the_peers(variant: str):
    own, *peers = (z.requires_grad_() for z in networks(3, 3, 5))
    dml(own, peers, variant).backward()
    assert [peer.grad for peer in peers] == [None, None]
    assert own.grad.any()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_in_one_graph(variant: str):
    own, *peers = networks(3, 6, 10, torch.float32)
    inputs = [own.clone().requires_grad_() for _ in range(2)]
    eager = dml(inputs[0], peers, variant)
    compiled = torch.compile(dml, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], peers, variant)
    eager.backward()
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch._dynamo.reset()


def test_what_is_refused():
    own, peer = networks(2, 3, 5)
    with pytest.raises(NetworkError, match=r"dml compares logits of one shape, but the student's are \(3, 5\)"):
        dml(own, [peer, peer[:, :4]])
    with pytest.raises(RecipeError, match="dml learns from peers, and there are none"):
        dml(own, [])
    with pytest.raises(RecipeError, match="variant of dml is 'sum'; expected 'paper' or 'code'"):
        dml(own, [peer], "sum")
    with pytest.raises(NetworkError, match="student has 10 classes and the teacher 5"):
        DML(setting(10, 5))
    with pytest.raises(RecipeError, match="dml learns from a teacher, and there is none"):
        DML(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="dml learns from a teacher, and there is none"):
        DML(setting())(Features(own, torch.zeros(3, 4)), None, batch_of(3))
