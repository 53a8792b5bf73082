"""COCO-format data sets: geometry, decoding, determinism, and what is said about bad data."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")
rle = pytest.importorskip("pycocotools.mask")

from edge_mrcnn.errors import EdgeMrcnnError  # noqa: E402
from edge_mrcnn.runtime.preprocess import letterbox  # noqa: E402
from edge_mrcnn.training.augment import Augmentation, View, warp_mask, warp_picture  # noqa: E402
from edge_mrcnn.training.dataset import CocoDataset, collate, decode_segment, read_picture  # noqa: E402
from tests.training.shapes import annotations_of, write_shapes  # noqa: E402

pytestmark = pytest.mark.torch

CANVAS = (96, 128)


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path, 4)


def edit(path, change):
    """Change the annotations in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


class TestReading:
    def test_target_has_what_torchvision_expects(self, shapes):
        data = CocoDataset(shapes, CANVAS)
        picture, target = data[0]
        count = len(data.records[0].labels)
        assert picture.shape == (*CANVAS, 3)
        assert picture.dtype == torch.uint8
        assert target["boxes"].shape == (count, 4)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert target["masks"].shape == (count, *CANVAS)
        assert target["masks"].dtype == torch.uint8
        assert target["iscrowd"].tolist() == [0] * count
        assert target["image_id"] == data.records[0].image_id
        assert target["image_hw"] == (96, 128)

    def test_categories_become_contiguous_labels(self, shapes):
        data = CocoDataset(shapes, CANVAS)
        assert data.class_names == ("__background__", "disc", "bar")
        assert data.category_ids == (0, 3, 70)
        content = json.loads(shapes.read_text())
        first = [entry["category_id"] for entry in content["annotations"] if entry["image_id"] == 1]
        assert [data.category_ids[label] for label in data.records[0].labels] == first

    def test_picture_beside_the_annotations(self, shapes):
        for path in (shapes.parent / "images").iterdir():
            path.rename(shapes.parent / path.name)
        assert CocoDataset(shapes, CANVAS).picture(0).shape == (120, 160, 3)

    def test_letterbox_is_the_runtimes(self, shapes):
        data = CocoDataset(shapes, (96, 96))
        picture, target = data[1]
        expected, geometry = letterbox(data.picture(1), (96, 96))
        assert target["image_hw"] == geometry.content_hw == (72, 96)
        assert np.array_equal(picture.numpy(), expected)

    def test_boxes_are_tight_around_masks(self, shapes):
        data = CocoDataset(shapes, CANVAS)
        for index in range(len(data)):
            _, target = data[index]
            for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert np.abs(box - tight).max() <= 1.0

    def test_a_picture_without_objects_has_empty_targets(self, shapes):
        edit(shapes, lambda content: content.update(annotations=[]))
        _, target = CocoDataset(shapes, CANVAS)[0]
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *CANVAS)

    def test_cache_gives_the_same_pictures(self, shapes):
        plain, cached = CocoDataset(shapes, CANVAS), CocoDataset(shapes, CANVAS, cache_gb=1)
        cached.preload()
        for path in (shapes.parent / "images").iterdir():
            assert path.stat().st_size
        for index in range(4):
            assert torch.equal(plain[index][0], cached[index][0])
        (shapes.parent / "images" / "0.png").unlink()
        assert torch.equal(cached[0][0], cached[0][0])
        with pytest.raises(EdgeMrcnnError, match="does not exist"):
            plain[0]

    def test_batches(self, shapes):
        data = CocoDataset(shapes, CANVAS)
        pictures, targets = collate([data[0], data[1]])
        assert pictures.shape == (2, *CANVAS, 3)
        assert [target["image_id"] for target in targets] == [1, 2]


class TestSegments:
    MASK = np.zeros((20, 30), np.uint8)
    MASK[5:15, 10:25] = 1

    def forms(self):
        packed = rle.encode(np.asfortranarray(self.MASK))
        runs, value, flat = [0], 0, self.MASK.flatten(order="F")
        for pixel in flat:
            if pixel != value:
                runs.append(0)
                value = pixel
            runs[-1] += 1
        return {
            "polygon": [[10, 5, 25, 5, 25, 15, 10, 15]],
            "compressed": {"size": [20, 30], "counts": packed["counts"].decode()},
            "uncompressed": {"size": [20, 30], "counts": runs},
        }

    @pytest.mark.parametrize("form", ["polygon", "compressed", "uncompressed"])
    def test_every_form_gives_the_same_mask(self, form):
        assert np.array_equal(decode_segment(self.forms()[form], (20, 30), "x"), self.MASK)

    def test_two_polygons_are_united(self):
        mask = decode_segment([[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 14, 10, 14, 14, 10, 14]], (20, 30), "x")
        assert mask[:4, :4].all()
        assert mask[10:14, 10:14].all()
        assert mask.sum() == 32

    @pytest.mark.parametrize(
        "segment", [[], 7, {"size": [20, 30]}, {"size": [9, 30], "counts": [270]}, [[1, 2]], None], ids=str
    )
    def test_others_are_refused(self, segment):
        with pytest.raises(EdgeMrcnnError, match="segmentation of cup 3 cannot be decoded"):
            decode_segment(segment, (20, 30), "cup 3")


class TestPictures:
    PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)

    def test_colour_is_rgb(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), self.PICTURE[:, :, ::-1])
        assert np.array_equal(read_picture(tmp_path / "a.png"), self.PICTURE)

    def test_grey_is_spread(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), self.PICTURE[:, :, 0])
        assert np.array_equal(read_picture(tmp_path / "a.png"), np.repeat(self.PICTURE[:, :, :1], 3, 2))

    def test_alpha_is_dropped(self, tmp_path):
        alpha = np.full((6, 8, 1), 7, np.uint8)
        cv2.imwrite(str(tmp_path / "a.png"), np.concatenate([self.PICTURE[:, :, ::-1], alpha], 2))
        assert np.array_equal(read_picture(tmp_path / "a.png"), self.PICTURE)

    def test_sixteen_bits_are_scaled(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), self.PICTURE[:, :, ::-1].astype(np.uint16) * 257)
        assert np.abs(read_picture(tmp_path / "a.png").astype(int) - self.PICTURE).max() <= 1

    def test_exif_orientation_is_applied(self, tmp_path):
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[:, :16] = 255
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
        exif = b"Exif\x00\x00" + tiff
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
        upright = read_picture(tmp_path / "a.jpg")
        assert upright.shape == (32, 16, 3)
        assert upright[:14].min() > 200
        assert upright[18:].max() < 50

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
    def test_unreadable(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(EdgeMrcnnError, match=rf"a\.png \({len(content)} bytes\) cannot be decoded"):
            read_picture(tmp_path / "a.png")


class TestBadAnnotations:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c["annotations"][0].pop("bbox"), "annotation 1 in .* has no bbox"),
            (lambda c: c["annotations"][0].pop("segmentation"), "has no segmentation"),
            (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\]: expected \[x, y, width"),
            (lambda c: c["annotations"][0].update(category_id=5), r"category 5, .* categories \[3, 70\]"),
            (lambda c: c["annotations"][0].update(image_id=99), "picture 99, which the file does not list"),
            (lambda c: c.pop("categories"), "lack categories"),
            (lambda c: c.update(images=[]), "list no pictures"),
        ],
    )
    def test_is_named(self, shapes, change, message):
        edit(shapes, change)
        with pytest.raises(EdgeMrcnnError, match=message):
            CocoDataset(shapes, CANVAS)

    def test_missing_file(self, tmp_path):
        with pytest.raises(EdgeMrcnnError, match="do not exist"):
            CocoDataset(tmp_path / "a.json", CANVAS)

    @pytest.mark.parametrize("content", ["", "{", '{"images": ['])
    def test_truncated_file(self, tmp_path, content):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(EdgeMrcnnError, match="no valid JSON"):
            CocoDataset(tmp_path / "a.json", CANVAS)

    def test_a_list_is_no_annotations_file(self, tmp_path):
        (tmp_path / "a.json").write_text("[]")
        with pytest.raises(EdgeMrcnnError, match="lack images, annotations, categories"):
            CocoDataset(tmp_path / "a.json", CANVAS)

    def test_another_size_than_the_picture_has(self, shapes):
        edit(shapes, lambda content: content["images"][0].update(height=160, width=120))
        with pytest.raises(EdgeMrcnnError, match=r"is 120x160 .* says 160x120"):
            CocoDataset(shapes, CANVAS).picture(0)

    def test_boxes_without_area_are_left_out(self, shapes):
        before = len(CocoDataset(shapes, CANVAS).records[0].labels)
        edit(shapes, lambda content: content["annotations"][0].update(bbox=[5, 5, 0, 4]))
        assert len(CocoDataset(shapes, CANVAS).records[0].labels) == before - 1


class TestAugmentation:
    def test_depends_on_seed_epoch_and_index_only(self, shapes):
        one, two = (CocoDataset(shapes, CANVAS, Augmentation(), seed=5) for _ in range(2))
        two[3], two[1]
        assert torch.equal(one[2][0], two[2][0])
        assert torch.equal(one[2][1]["masks"], two[2][1]["masks"])
        two.epoch = 1
        assert not torch.equal(one[2][0], two[2][0])
        other = CocoDataset(shapes, CANVAS, Augmentation(), seed=6)
        assert not torch.equal(one[2][0], other[2][0])

    @pytest.mark.parametrize("zoom", [(0.6, 0.6), (1.0, 1.0), (1.5, 1.5)])
    @pytest.mark.parametrize("seed", range(4))
    def test_picture_boxes_and_masks_move_together(self, shapes, zoom, seed):
        """The shapes are of one colour on black, so that the picture itself tells where each must be."""
        still = Augmentation(zoom=zoom, light=0.0, plain=0.0)
        picture, target = CocoDataset(shapes, CANVAS, still, seed=seed)[0]
        seen = picture.numpy().max(2) > 127
        height, width = target["image_hw"]
        assert not seen[height:].any()
        assert not seen[:, width:].any()
        union = target["masks"].numpy().any(0)
        assert (seen ^ union).sum() <= 0.06 * max(1, seen.sum())
        for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert np.abs(box - [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).max() <= 1.5

    def test_mirror_of_a_mirror(self):
        mask = np.zeros((9, 16), np.uint8)
        mask[2:5, 3:9] = 1
        view = View((9, 16), (9, 16), -1.0, 1.0, 16.0, 0.0)
        assert np.array_equal(warp_mask(mask, (0, 0), view), mask[:, ::-1])
        assert np.array_equal(view.boxes(np.array([[3, 2, 9, 5]], np.float32)), [[7, 2, 13, 5]])
        picture = np.repeat(mask[:, :, None] * 200, 3, 2)
        assert np.array_equal(warp_picture(picture, view), picture[:, ::-1])

    def test_a_cropped_mask_lands_where_the_whole_one_does(self):
        mask = np.zeros((60, 80), np.uint8)
        cv2.circle(mask, (40, 30), 17, 1, -1)
        view = View((48, 64), (48, 64), 0.8, 0.8, -3.3, 1.7)
        whole = warp_mask(mask, (0, 0), view)
        assert np.array_equal(warp_mask(mask[10:50, 20:60], (20, 10), view), whole)

    def test_light_changes_the_content_only(self, shapes):
        bright = Augmentation(flip=False, zoom=(1, 1), light=0.5, plain=1.0)
        plain = CocoDataset(shapes, (96, 96))[0][0]
        lit = CocoDataset(shapes, (96, 96), bright, seed=1)[0][0]
        assert not torch.equal(plain[:72], lit[:72])
        assert not lit[72:].any()


def test_shapes_cover_both_classes(shapes):
    labels = {entry["category_id"] for entry in annotations_of(shapes)["annotations"]}
    assert labels == {3, 70}
