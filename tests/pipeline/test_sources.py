"""Images and videos of rows: where they are read from, what they become, and what is refused."""

from __future__ import annotations

import io
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from show1_ray.clip import Clip
from show1_ray.dataset.video import encode_video
from show1_ray.line.faults import failure
from show1_ray.pipeline import Pipeline, media, sources
from show1_ray.pipeline.inputs import InputError
from show1_ray.pipeline.media import read_image, read_video
from show1_ray.pipeline.reading import reading_stage
from show1_ray.pipeline.sources import Sources, folder_of_manifest, is_public
from show1_ray.stage import StageError

MIB = 2**20


def file_of(array: np.ndarray, mode: str | None = None, format: str = "PNG", **more) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, format, **more)
    return file.getvalue()


ASKED = Counter[str]()
"""How often the server below was asked for each path."""

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
PNG = file_of(PIXELS)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A web server on this machine: its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ASKED[self.path] += 1
            places = {"/a.png": (200, PNG), "/empty": (200, b""), "/long": (200, bytes(2 * MIB))}
            status, body = places.get(self.path, (404, b""))
            if self.path.startswith("/busy/"):  # once, for ever, or with an answer that is cut off
                status, body = (200, PNG) if self.path == "/busy/once" and ASKED[self.path] > 1 else (503, b"")
            if self.path == "/cut" and ASKED[self.path] == 1:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                return
            if self.path == "/cut":
                status, body = 200, PNG
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_url_is_read_and_a_redirect_followed(server):
    anywhere = Sources(allow_private=True)
    assert anywhere.read(f"{server}/a.png", MIB) == PNG
    assert anywhere.read(f"{server}/to//a.png", MIB) == PNG
    assert anywhere.read(f"{server}/to/{server}/a.png", MIB) == PNG


def test_what_may_pass_is_asked_again_and_what_may_not_is_asked_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FIRST_WAIT", 0.01)
    anywhere = Sources(str(tmp_path), allow_private=True)
    for path in ("busy/once", "cut"):
        assert anywhere.read(f"{server}/{path}", MIB) == PNG
        assert ASKED[f"/{path}"] == 2
    with pytest.raises(InputError, match="HTTP status 503") as error:
        anywhere.read(f"{server}/busy/always", MIB)
    assert (ASKED["/busy/always"], error.value.passing) == (sources.ATTEMPTS, True)
    for path in ("gone", "long?once", "empty?once"):
        with pytest.raises(InputError) as error:
            anywhere.read(f"{server}/{path}", MIB)
        assert (ASKED[f"/{path}"], error.value.passing) == (1, False)
    for place in ("gone.png", "http://[nonsense/", "ftp://x/a.png", f"file://{tmp_path}"):
        with pytest.raises(InputError) as error:
            anywhere.read(place, MIB)
        assert not error.value.passing, place
    with pytest.raises(InputError) as error:
        Sources().read(f"{server}/a.png", MIB)
    assert not error.value.passing


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nothing", "cannot be read: HTTP status 404"),
        ("empty", "is empty"),
        ("long", "has more than 1 MiB, the most"),
        ("to/file:///etc/hostname", "which is no http or https URL"),
        ("to//to//to//to//to//to//to//a.png", "leads on to other URLs more than 5 times"),
    ],
)
def test_what_a_server_does_not_give_is_refused_with_the_url(server, path, reason):
    with pytest.raises(InputError) as error:
        Sources(allow_private=True).read(f"{server}/{path}", MIB)
    assert reason in str(error.value)
    assert path in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_private_addresses_are_refused_however_they_are_written(server, host):
    port = server.rpartition(":")[2]
    with pytest.raises(InputError, match="which is no public address: --allow-private-urls reads it"):
        Sources().read(f"http://{host}:{port}/a.png", MIB)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.10.20", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("fec0::1", False),
        ("::10.0.0.1", False),
        ("::1", False),
    ],
)
def test_which_addresses_are_public(address, expected):
    assert is_public(address) is expected


def test_a_redirect_from_a_public_place_to_a_private_one_is_refused(server, monkeypatch):
    """The first connection is let through: a name of the public Internet, which tests have none of, stands for it."""
    seen: list[str] = []
    monkeypatch.setattr(sources, "is_public", lambda address: not (seen.append(address) or len(seen) > 1))
    with pytest.raises(InputError, match="leads to localhost"):
        Sources().read(f"{server}/to/http://localhost:{server.rpartition(':')[2]}/a.png", MIB)
    assert len(seen) == 2


def test_other_schemes_are_refused():
    for url in ("ftp://example.org/a.png", "gopher://x/", "data://x", "s4://bucket/a.png", "simplecache::https://x/a"):
        with pytest.raises(InputError, match="is no place that is read: give bytes, a path, or a URL of https, http"):
            Sources(allow_private=True).read(url, MIB)


def test_paths_are_relative_to_the_manifests_folder_and_do_not_leave_it(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "rows.csv").touch()
    for manifest in (folder / "rows.csv", folder, folder / "*.csv", f"file://{folder}/rows.csv"):
        assert folder_of_manifest(str(manifest)) == str(folder)
    assert folder_of_manifest("s3://bucket/job/rows.csv") == folder_of_manifest("s3://bucket/job/") == "s3://bucket/job"
    inside = Sources(str(folder))
    assert inside.read("a.png", MIB) == inside.read(f"file://{folder}/a.png", MIB) == PNG
    for path in ("../secret.png", "link.png", str(tmp_path / "secret.png"), f"file://{tmp_path}/secret.png"):
        with pytest.raises(InputError, match="outside the manifest's folder: --allow-private-urls reads it"):
            inside.read(path, MIB)
        assert Sources(str(folder), allow_private=True).read(path, MIB) == PNG
    with pytest.raises(InputError, match=r"'b\.png' cannot be read here: No such file"):
        inside.read("b.png", MIB)


def test_object_stores_are_read_too(s3):
    import fsspec

    fsspec.filesystem("s3").pipe("bucket/job/a.png", PNG)
    assert Sources().read(f"{s3}/job/a.png", MIB) == Sources(f"{s3}/job").read("a.png", MIB) == PNG
    with pytest.raises(InputError, match="cannot be read"):
        Sources().read(f"{s3}/job/b.png", MIB)
    with pytest.raises(InputError, match="leads out of the manifest's folder"):
        Sources(f"{s3}/job").read("../a.png", MIB)


def test_every_kind_of_image_becomes_rgb():
    np.testing.assert_array_equal(read_image(PNG), PIXELS)
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(read_image(file_of(grey)), np.repeat(grey[:, :, None], 3, axis=2))
    deep = grey.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(read_image(file_of(deep)), np.repeat(grey[:, :, None], 3, axis=2))
    alpha = np.dstack([PIXELS, np.full((4, 6), 255, np.uint8)])
    alpha[0, :, 3], alpha[1, :, 3] = 0, 128
    read = read_image(file_of(alpha))
    assert (read[0] == 255).all()
    np.testing.assert_array_equal(read[2:], PIXELS[2:])
    np.testing.assert_allclose(read[1], PIXELS[1] * (128 / 255) + 127, atol=1)
    palette = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).convert("P").save(palette, "GIF")
    assert read_image(palette.getvalue()).shape == (4, 6, 3)
    assert np.abs(read_image(file_of(np.full((8, 8, 3), 90, np.uint8), format="JPEG")).astype(int) - 90).max() < 3
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright
    assert read_image(file_of(np.zeros((4, 6, 3), np.uint8), format="JPEG", exif=exif)).shape == (6, 4, 3)


def test_a_video_becomes_its_frames():
    frames = np.stack([np.full((16, 32, 3), level, np.uint8) for level in (20, 120, 220)])
    read = read_video(encode_video(frames, 8))
    assert (read.shape, read.dtype) == ((3, 16, 32, 3), np.uint8)
    assert np.abs(read.astype(int) - frames).max() <= 3
    matroska = iio.imwrite("<bytes>", frames, extension=".mkv", plugin="pyav", codec="mpeg4", fps=8)
    assert read_video(matroska).shape == (3, 16, 32, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is no image that is read here"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image that is read here"),
        (file_of(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))[:150], "is a damaged image"),
        (file_of(np.zeros((2, 2), np.float32), format="TIFF"), "has floats for pixels"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(InputError, match=reason):
        read_image(data)


def test_what_is_no_video_is_refused():
    for data in (b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", b"ffconcat version 1.0\nfile /etc/hostname\n", PNG):
        with pytest.raises(InputError, match="is no video that is read here"):
            read_video(data)
    with pytest.raises(InputError, match="is a damaged video"):
        read_video(encode_video(np.zeros((3, 16, 16, 3), np.uint8), 8)[:40])


def test_sizes_are_bounded(monkeypatch):
    monkeypatch.setattr(media, "MOST_PIXELS", {"image": 23, "video": 16 * 16 * 2})
    with pytest.raises(InputError, match="has 6x4, which is more than 23 pixels"):
        read_image(PNG)
    with pytest.raises(InputError, match="has 3 frames of 16x16, which is more than 512 pixels"):
        read_video(encode_video(np.zeros((5, 16, 16, 3), np.uint8), 8))


STAGES = '''
from show1_ray import Stage

class Repeat(Stage):
    """The image, four times."""
    takes = {"picture": "h w c"}
    gives = {"video": "f h w c"}

    def run(self, clips, values):
        return [{"video": v["picture"][None].repeat(4, axis=0)} for v in values]
'''


def test_inputs_that_a_stage_takes_are_read_first_and_their_content_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FIRST_WAIT", 0.01)
    (tmp_path / "repeating.py").write_text(STAGES)
    (tmp_path / "p.yaml").write_text('inputs: {picture: image, unused: video}\nstages: {r: {uses: "repeating:Repeat"}}')
    pipeline = Pipeline.load(tmp_path / "p.yaml", code=tmp_path / "repeating.py")
    spec = reading_stage(pipeline, Sources())
    assert spec is not None
    assert (spec.name, spec.gives, spec.plain, spec.on) == ("inputs", ("picture",), ("picture_sha256",), "cpu")
    read = spec.build("cpu")
    [values] = read([Clip("a", "a", inputs={"picture": PNG})], [{}])
    np.testing.assert_array_equal(values["picture"], PIXELS)
    assert len(values["picture_sha256"]) == 64
    with pytest.raises(StageError, match="clip b: stage inputs: column 'picture' is no image") as error:
        read([Clip("b", "b", inputs={"picture": b"text"})], [{}])
    assert (error.value.clip_id, failure(error.value).is_permanent) == ("b", True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.png"
        anywhere = reading_stage(pipeline, Sources(allow_private=True))
        with pytest.raises(StageError) as error:
            anywhere.build("cpu")([Clip("c", "c", inputs={"picture": url})], [{}])
    assert not failure(error.value).is_permanent


def test_nothing_is_read_where_no_stage_takes_it(tmp_path):
    assert reading_stage(Pipeline.load("nano"), Sources()) is None


def test_a_connection_that_is_refused_says_so(monkeypatch):
    monkeypatch.setattr(sources, "FIRST_WAIT", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(InputError, match=r"cannot be read: .*refused"):
            Sources(allow_private=True).read(f"http://127.0.0.1:{taken.getsockname()[1]}/", MIB)
