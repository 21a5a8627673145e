"""Faces brought to a template: exact transforms, no reflections, pixels where they belong, and tables of landmarks."""

import math

import numpy as np
import pytest
from PIL import Image

from potstill.data.alignment import AlignedSource, align, read_landmarks, similarity, template_points
from potstill.data.folder import FolderSource
from potstill.errors import DataError

TEMPLATE, _ = template_points("arcface-112")


def moved(points, scale=1.0, angle=0.0, shift=(0.0, 0.0)):
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ turn.T + np.array(shift)


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


class TestTemplate:
    def test_the_published_points(self):
        assert TEMPLATE.shape == (5, 2)
        assert TEMPLATE[0].tolist() == [38.2946, 51.6963]
        assert TEMPLATE[4].tolist() == [70.7299, 92.2041]

    def test_other_sizes_are_scaled(self):
        points, side = template_points("arcface-64")
        assert side == 64
        np.testing.assert_allclose(points, TEMPLATE * 64 / 112)

    @pytest.mark.parametrize(
        "name", ["arcface", "arcface-", "arcface-0", "arcface-1e3", "arcface-²", "112", "dlib-112", ""]
    )
    def test_unknown(self, name):
        with pytest.raises(DataError, match=r"There is no template .* for faces; expected arcface-N"):
            template_points(name)


class TestSimilarity:
    @pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 30.0])
    @pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, math.pi, -2.0])
    def test_an_exact_one_is_found_exactly(self, scale, angle):
        points = moved(TEMPLATE, scale, angle, (400.0, -30.0))
        matrix = similarity(points, TEMPLATE)
        np.testing.assert_allclose(apply(matrix, points), TEMPLATE, atol=1e-8)
        assert np.linalg.det(matrix[:, :2]) == pytest.approx(scale**-2)

    def test_of_noisy_points_it_is_the_nearest(self):
        rng = np.random.default_rng(0)
        points = moved(TEMPLATE, 2.0, 0.4, (10.0, 20.0)) + rng.normal(size=(5, 2))
        best = similarity(points, TEMPLATE)

        def off(matrix):
            return np.square(apply(matrix, points) - TEMPLATE).sum()

        for _ in range(200):
            a, b, x, y = rng.normal(scale=1e-3, size=4)
            assert off(best + np.array([[a, -b, x], [b, a, y]])) > off(best)

    def test_it_agrees_with_umeyamas_decomposition(self):
        rng = np.random.default_rng(1)
        for _ in range(20):
            points, target = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
            a, b = points - points.mean(0), target - target.mean(0)
            u, d, v = np.linalg.svd(b.T @ a / 5)
            sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
            turn = u @ sign @ v * (d * np.diag(sign)).sum() / (a**2).sum() * 5
            matrix = similarity(points, target)
            np.testing.assert_allclose(matrix[:, :2], turn, atol=1e-10)
            np.testing.assert_allclose(matrix[:, 2], target.mean(0) - turn @ points.mean(0), atol=1e-10)

    def test_a_reflection_is_not_taken(self):
        mirrored = TEMPLATE * np.array([-1, 1]) + np.array([112, 0])
        matrix = similarity(mirrored, TEMPLATE)
        assert np.linalg.det(matrix[:, :2]) > 0
        assert np.abs(apply(matrix, mirrored) - TEMPLATE).max() > 5

    @pytest.mark.parametrize(
        ("points", "message"),
        [
            (np.zeros((5, 2)), "all lie in one place"),
            (np.full((5, 2), 1e6), "all lie in one place"),
            (np.full((5, 2), np.nan), "must be finite numbers"),
            (np.zeros((4, 2)), r"must be \(K, 2\) with as many targets, got \(4, 2\) and \(5, 2\)"),
            (np.zeros((5, 3)), r"must be \(K, 2\)"),
            (np.zeros(10), r"must be \(K, 2\)"),
        ],
    )
    def test_refused(self, points, message):
        with pytest.raises(DataError, match=message):
            similarity(points, TEMPLATE)

    def test_no_rotation_is_the_best(self):
        square = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
        with pytest.raises(DataError, match="no rotation brings them nearer"):
            similarity(square, square * np.array([-1, 1]))


class TestAlign:
    def picture(self, height=90, width=130):
        """Smooth, so that interpolation is exact but for rounding: red grows to the right, green downwards."""
        y, x = np.mgrid[:height, :width]
        return np.stack([x * 1.5, y * 2.0, np.full_like(x, 77)], axis=-1).round().astype(np.uint8)

    def test_points_in_place_leave_the_image_as_it_is(self):
        image = self.picture(112, 112)
        np.testing.assert_array_equal(align(image, TEMPLATE), image)

    def test_a_shift_by_whole_pixels_is_exact(self):
        image = np.random.default_rng(0).integers(0, 256, (140, 150, 3), dtype=np.uint8)
        np.testing.assert_array_equal(align(image, TEMPLATE + np.array([20, 15])), image[15:127, 20:132])

    def test_a_quarter_turn_is_exact(self):
        image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        turned = np.rot90(image)  # anticlockwise: what was at (x, y) is now at (y, 111 - x)
        points = np.stack([TEMPLATE[:, 1], 111 - TEMPLATE[:, 0]], axis=1)
        np.testing.assert_array_equal(align(np.ascontiguousarray(turned), points), image)

    @pytest.mark.parametrize("name", ["arcface-112", "arcface-64"])
    def test_pixels_come_from_where_the_transform_says(self, name):
        target, side = template_points(name)
        points = moved(target, 0.5, 0.25, (40.0, 20.0))
        image = self.picture()
        cut = align(image, points, name)
        assert (cut.shape, cut.dtype) == ((side, side, 3), np.uint8)
        back = similarity(target, points)
        for x, y in [(10, 12), (side // 2, side // 2), (side - 12, side - 9)]:
            there = apply(back, np.array([[x, y]], dtype=float))[0]
            assert cut[y, x, 0] == pytest.approx(there[0] * 1.5, abs=1.1)
            assert cut[y, x, 1] == pytest.approx(there[1] * 2.0, abs=1.1)
            assert cut[y, x, 2] == 77

    def test_outside_the_image_it_is_black(self):
        cut = align(np.full((20, 20, 3), 255, dtype=np.uint8), TEMPLATE - 90)
        assert cut[0, 0].tolist() == [0, 0, 0]
        cut = align(np.full((112, 112, 3), 255, dtype=np.uint8), TEMPLATE + 60)
        assert cut[10, 10].tolist() == [255, 255, 255]
        assert cut[100, 100].tolist() == [0, 0, 0]


HEAD = "file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n"


def row(file, points=TEMPLATE):
    return f"{file}," + ",".join(str(value) for value in points.flatten()) + "\n"


def table(folder, content):
    path = folder / "landmarks.csv"
    path.write_text(content)
    return path


class TestTable:
    def test_read(self, tmp_path):
        found = read_landmarks(
            table(tmp_path, "\ufeff" + HEAD + row("a/1.png") + "\n" + row('"b,c/2.png"', TEMPLATE + 1))
        )
        assert list(found) == ["a/1.png", "b,c/2.png"]
        np.testing.assert_array_equal(found["b,c/2.png"], TEMPLATE + 1)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "should begin with the line file,x1,y1"),
            ("file,x1,x2,x3,x4,x5,y1,y2,y3,y4,y5\n", "should begin with the line file,x1,y1"),
            (row("a.png"), "should begin with the line file,x1,y1"),
            (HEAD, "has no landmarks below its first line"),
            (HEAD + row("a.png") + "b.png,1,2,3\n", "line 3: expected a file's name and ten numbers"),
            (HEAD + row("a.png").replace("38.2946", "left"), "line 2: expected a file's name and ten numbers"),
            (HEAD + row("a.png").replace("38.2946", "nan"), "line 2: expected a file's name and ten numbers"),
            (HEAD + row("a.png").strip() + ",5\n", "line 2: expected a file's name and ten numbers"),
            (HEAD + row(""), "line 2: expected a file's name and ten numbers"),
            (HEAD + row("a.png") * 2, r"line 3: a\.png comes for the second time"),
            (HEAD + row("a.png", TEMPLATE[[1, 0, 2, 4, 3]]), "in most rows the points lie mirrored"),
        ],
    )
    def test_refused(self, tmp_path, content, message):
        with pytest.raises(DataError, match=message):
            read_landmarks(table(tmp_path, content))

    def test_turned_faces_are_not_mirrored(self, tmp_path):
        rows = "".join(row(f"{n}.png", moved(TEMPLATE, 1, n)) for n in range(6))
        assert len(read_landmarks(table(tmp_path, HEAD + rows))) == 6

    def test_one_mirrored_face_among_many_is_a_reflection_in_a_glass(self, tmp_path):
        rows = row("a.png") + row("b.png") + row("c.png", TEMPLATE[[1, 0, 2, 4, 3]])
        assert len(read_landmarks(table(tmp_path, HEAD + rows))) == 3

    def test_no_file_and_no_text(self, tmp_path):
        with pytest.raises(DataError, match=r"Cannot read .*none\.csv: No such file"):
            read_landmarks(tmp_path / "none.csv")
        (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
        with pytest.raises(DataError, match=r"Cannot read .*a\.csv: it is no table of text"):
            read_landmarks(tmp_path / "a.csv")


@pytest.fixture
def folder(tmp_path):
    for person in "ab":
        (tmp_path / "faces" / person).mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (130, 140, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / person / f"{number}.png")
    return tmp_path / "faces"


class TestSource:
    def landmarks(self):
        return {
            f"{person}/{number}.png": TEMPLATE + np.array([8 * number, 5]) for person in "ab" for number in range(2)
        }

    def test_images_are_aligned(self, folder):
        plain = FolderSource(folder)
        source = AlignedSource(plain, self.landmarks())
        assert (len(source), source.fixed_size, source.template) == (4, (112, 112), "arcface-112")
        assert (source.labels.tolist(), source.classes) == ([0, 0, 1, 1], ("a", "b"))
        np.testing.assert_array_equal(source.image(1), plain.image(1)[5:117, 8:120])
        assert source.encoded(1) is None
        assert source.describe(3) == str(folder / "b" / "1.png")

    def test_identity_follows_landmarks_and_template(self, folder):
        plain = FolderSource(folder)
        one = AlignedSource(plain, self.landmarks())
        assert one.identity == AlignedSource(plain, self.landmarks()).identity != plain.identity
        assert one.identity != AlignedSource(plain, self.landmarks(), "arcface-64").identity
        assert one.identity != AlignedSource(plain, {**self.landmarks(), "b/0.png": TEMPLATE}).identity

    def test_images_without_landmarks(self, folder):
        some = {key: value for key, value in self.landmarks().items() if key != "b/0.png"}
        with pytest.raises(DataError, match=r"1 of 4 images have no landmarks, the first: b/0\.png\. Either each"):
            AlignedSource(FolderSource(folder), some)

    def test_landmarks_without_images_are_told(self, folder, caplog):
        AlignedSource(FolderSource(folder), {**self.landmarks(), "c/9.png": TEMPLATE})
        assert "passed over landmarks of 1 files that are no images of it" in caplog.text

    def test_landmarks_by_which_nothing_can_be_aligned_are_named(self, folder):
        with pytest.raises(DataError, match=r"The landmarks of b/1\.png in .*all lie in one place"):
            AlignedSource(FolderSource(folder), {**self.landmarks(), "b/1.png": np.full((5, 2), 9.0)})
