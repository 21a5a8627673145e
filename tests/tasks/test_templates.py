"""Templates: means of media computed by hand, images without a face left out, scores that do not depend on places."""

from operator import mul

import pytest
import torch

from potstill.errors import DataError
from potstill.tasks.comparisons import scores_between
from potstill.tasks.templates import Templates, pool

ALL = torch.ones(5, dtype=torch.bool)


def pooled(images: list[list[float]], templates: list[int], media: list[int], valid: list[bool] | None = None, **more):
    count = len(images)
    return pool(
        torch.tensor(images),
        torch.ones(count, dtype=torch.bool) if valid is None else torch.tensor(valid),
        image_of=torch.arange(count),
        template_of=torch.tensor(templates),
        media_of=torch.tensor(media),
        templates=max(templates) + 1,
        **more,
    )


def unit(*vector: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(vector, dtype=torch.float64), dim=0)


def test_a_template_is_the_mean_of_its_media_and_a_media_the_mean_of_its_images() -> None:
    # media 0: three frames, (1, 0), (1, 0), (0, 1); media 1: one photograph, (0, 1)
    found = pooled([[2, 0], [3, 0], [0, 4], [0, 5]], [0, 0, 0, 0], [0, 0, 0, 1])
    assert torch.allclose(found.vectors[0], unit(2 / 3, 1 / 3 + 1), atol=2**-26)
    # as four photographs it would be the mean of four
    found = pooled([[2, 0], [3, 0], [0, 4], [0, 5]], [0, 0, 0, 0], [0, 1, 2, 3])
    assert torch.allclose(found.vectors[0], unit(1, 1), atol=2**-26)


def test_the_length_of_an_embedding_counts_only_without_normalising() -> None:
    images, where = [[6.0, 0.0], [0.0, 2.0]], ([0, 0], [0, 1])
    assert torch.allclose(pooled(images, *where).vectors[0], unit(1, 1), atol=2**-26)
    assert torch.allclose(pooled(images, *where, normalise=False).vectors[0], unit(3, 1), atol=2**-26)


def test_equal_media_numbers_in_different_templates_are_different_media() -> None:
    found = pooled([[1, 0], [0, 1], [0, 1], [1, 0]], [0, 0, 1, 1], [7, 8, 7, 7])
    assert torch.allclose(found.vectors, unit(1, 1).expand(2, 2), atol=2**-26)


def test_weights_weigh_images_and_a_media_is_divided_by_its_number_of_images() -> None:
    weights = torch.tensor([0.5, 1.0, 1.0])
    found = pooled([[1, 0], [0, 1], [0, 1]], [0, 0, 0], [0, 0, 1], weights=weights)
    assert torch.allclose(found.vectors[0], unit(0.25, 0.5 + 1), atol=2**-26)


def test_flipped_embeddings_are_added_before_anything_is_scaled() -> None:
    found = pooled([[3.0, 0.0], [0.0, 1.0]], [0, 0], [0, 1], flipped=torch.tensor([[0.0, 4.0], [0.0, 1.0]]))
    assert torch.allclose(found.vectors[0], unit(0.6, 0.8 + 1), atol=2**-26)


def test_images_without_a_face_are_left_out_whatever_their_embedding() -> None:
    nan = float("nan")
    found = pooled([[1, 0], [nan, nan], [0, 1], [9, 9]], [0, 0, 0, 1], [0, 0, 1, 0], [True, False, True, False])
    assert torch.allclose(found.vectors[0], unit(1, 1), atol=2**-26)  # media 0 is one image now
    assert found.enrolled.tolist() == [True, False]
    assert found.vectors[1].tolist() == [0, 0]
    scores = scores_between(found, found)
    assert scores[0, 0] == 1
    assert scores[1].tolist() == [-torch.inf, -torch.inf]
    assert scores[0, 1] == -torch.inf


def test_a_template_without_members_and_one_whose_mean_is_zero_are_not_enrolled() -> None:
    found = pooled([[1, 0], [-1, 0], [0, 0], [1, 1]], [0, 0, 1, 3], [0, 1, 0, 0])
    assert found.enrolled.tolist() == [False, False, False, True]


def test_an_image_may_be_in_several_templates_and_in_none() -> None:
    found = pool(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]),
        ALL[:3],
        image_of=torch.tensor([0, 0, 1], dtype=torch.int32),
        template_of=torch.tensor([0, 1, 1], dtype=torch.int32),
        media_of=torch.tensor([0, 0, 1], dtype=torch.int32),
        templates=2,
    )
    assert torch.allclose(found.vectors, torch.stack([unit(1, 0), unit(1, 1)]), atol=2**-26)


def test_many_images_are_pooled_as_one_template_at_a_time_would_be() -> None:
    torch.manual_seed(0)
    count, templates = 20_000, 37  # more than are taken at a time
    images = torch.randn(count, 5).half()
    owner, media = torch.randint(templates, (count,)), torch.randint(50, (count,))
    valid = torch.rand(count) > 0.3
    found = pool(images, valid, image_of=torch.arange(count), template_of=owner, media_of=media, templates=templates)
    for template in range(templates):
        means = []
        for one in range(50):
            mine = images[valid & (owner == template) & (media == one)].double()
            if len(mine):
                means.append((mine / mine.norm(dim=1, keepdim=True)).mean(0))
        assert torch.allclose(found.vectors[template], unit(*torch.stack(means).mean(0)), atol=2**-25)


def test_equal_templates_have_equal_scores_wherever_they_stand() -> None:
    """A float32 product of matrices differs in its last bit from place to place, and would break ties at random."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 513)
    scores = {
        score
        for rows in (1, 3, 17, 300)
        for columns in (1, 2, 13, 1000)
        for score in scores_between(Templates.of(one.expand(rows, -1)), Templates.of(other.expand(columns, -1)))
        .unique()
        .tolist()
    }
    assert len(scores) == 1
    assert scores.pop() == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-7)


def test_products_of_templates_are_exact_sums() -> None:
    torch.manual_seed(0)
    one, other = Templates.of(torch.randn(40, 513)), Templates.of(torch.randn(30, 513))
    numbers = [[[int(x) for x in row] for row in (side.vectors * 2**26).tolist()] for side in (one, other)]
    exact = [[sum(map(mul, a, b)) for b in numbers[1]] for a in numbers[0]]  # integers of any size
    assert ((one.vectors @ other.vectors.T) * 2**52).long().tolist() == exact


def test_an_embedding_that_is_not_finite_is_refused_by_the_number_of_its_image() -> None:
    nan = float("nan")
    with pytest.raises(DataError, match="The embedding of image 1 and of 1 others is not finite"):
        pooled([[1, 0], [nan, 0], [torch.inf, 0]], [0, 0, 1], [0, 1, 0])
    with pytest.raises(DataError, match="The flipped embedding of image 0"):
        pooled([[1.0, 0.0]], [0], [0], flipped=torch.tensor([[0.0, nan]]))
    with pytest.raises(DataError, match="The weight of image 0"):
        pooled([[1.0, 0.0]], [0], [0], weights=torch.tensor([nan]))
    with pytest.raises(DataError, match="below 0"):
        pooled([[1.0, 0.0]], [0], [0], weights=torch.tensor([-0.1]))


def test_numbers_of_images_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 2\) with 1 marks"):
        pooled([[1, 0], [0, 1]], [0, 0], [0, 1], [True])
    with pytest.raises(DataError, match="flipped embeddings have shape"):
        pooled([[1.0, 0.0]], [0], [0], flipped=torch.zeros(2, 2))
    with pytest.raises(DataError, match="2 weights for 1 images"):
        pooled([[1.0, 0.0]], [0], [0], weights=torch.ones(2))
