"""Downloads that go on, against a server that hangs up."""

import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.download import fetch
from ase_biasgrad.data.sets import md17

CONTENT = np.random.default_rng(0).bytes(300_000)


class _Server(BaseHTTPRequestHandler):
    """Sends at most `most` bytes an answer; knows ranges if `ranges`."""

    content, most, ranges, status = CONTENT, 10**9, True, 200
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        first = int(wanted[len("bytes=") : -1]) if wanted and self.ranges else 0
        if first >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.end_headers()
            return
        self.send_response(206 if first else self.status)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        self.wfile.write(self.content[first : first + self.most])
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr("pooch.os_cache", lambda _: tmp_path / "cache")

    class Fresh(_Server):
        asked: list = []  # noqa: RUF012

    running = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    Fresh.url = f"http://127.0.0.1:{running.server_port}/x"
    yield Fresh
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke(server, ranges, tmp_path):
    server.most, server.ranges = 3 * 2**16, ranges
    with pytest.raises(DataError, match=r"196608 (of 300000|bytes read)"):
        fetch(server.url, "x.bin")
    assert not (tmp_path / "cache" / "x.bin").exists()
    server.most = 10**9
    assert fetch(server.url, "x.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=196608-"]
    fetch(server.url, "x.bin")
    assert len(server.asked) == 2  # the third comes from the cache
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"x.bin", "x.bin.sha256"}


def test_one_that_broke_after_the_last_byte_is_whole(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(DataError, match="full"):
            fetch(server.url, "x.bin")
    assert fetch(server.url, "x.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_what_was_damaged_in_the_cache_is_fetched_again(server):
    path = fetch(server.url, "x.bin")
    path.write_bytes(CONTENT[:7] + b"x" + CONTENT[8:])
    assert fetch(server.url, "x.bin").read_bytes() == CONTENT
    path.unlink()
    server.content = CONTENT[:1000]  # a new version of what is not here
    assert fetch(server.url, "x.bin").read_bytes() == CONTENT[:1000]


def test_wrong_hashes_and_answers_leave_nothing_in_the_cache(server, tmp_path):
    with pytest.raises(DataError, match="hash"):
        fetch(server.url, "x.bin", known_hash="md5:" + "0" * 32)
    server.status = 202
    with pytest.raises(DataError, match="answers 202"):
        fetch(server.url, "x.bin")
    assert list((tmp_path / "cache").iterdir()) == []


def test_md17_comes_from_its_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(md17, "MD17_URL", server.url + "/{molecule}.npz")
    server.content = b"<html>We are sorry</html>"
    with pytest.raises(DataError, match=r"sends no md17_ethanol\.npz"):
        md17.import_md17("ethanol", tmp_path / "x.h5", progress=False)
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "published.npz",
        z=[6, 6, 8, 1, 1, 1, 1, 1, 1],
        R=random.uniform(0, 9, (4, 9, 3)),
        E=np.arange(4.0)[:, None],
        F=random.normal(size=(4, 9, 3)),
    )
    server.content = (tmp_path / "published.npz").read_bytes()
    assert md17.import_md17("ethanol", tmp_path / "x.h5", progress=False).frames == 4
    assert len(Dataset(tmp_path / "x.h5")) == 4
    with pytest.raises(DataError, match=r"no molecule 'benzene' in MD17; .*benzene2017"):
        md17.import_md17("benzene", tmp_path / "y.h5")


def test_rmd17_comes_from_its_archive(server, tmp_path, monkeypatch):
    monkeypatch.setattr(md17, "RMD17_URL", server.url)
    random = np.random.default_rng(0)
    labels = {"energies": np.arange(4.0), "forces": random.normal(size=(4, 2, 3))}
    coords = random.uniform(0, 9, (4, 2, 3))
    np.savez(tmp_path / "x.npz", nuclear_charges=[8, 1], coords=coords, **labels)
    with tarfile.open(tmp_path / "archive", "w:bz2") as tar:
        tar.add(tmp_path / "x.npz", "rmd17/npz_data/rmd17_ethanol.npz")
    server.content = (tmp_path / "archive").read_bytes()
    with pytest.raises(DataError, match=r"rmd17_ethanol\.npz: is HO, and ethanol is C2H6O"):
        md17.import_md17("ethanol", tmp_path / "x.h5", revised=True, progress=False)
    monkeypatch.setitem(md17.RMD17_MOLECULES, "ethanol", "HO")
    assert md17.import_md17("ethanol", tmp_path / "x.h5", revised=True, progress=False).frames == 4
    with pytest.raises(DataError, match=r"rmd17\.tar\.bz2: holds no rmd17_uracil\.npz"):
        md17.import_md17("uracil", tmp_path / "y.h5", revised=True, progress=False)
    np.savez(tmp_path / "rmd17_ethanol.npz", precious=1)  # beside an archive, and of no concern
    monkeypatch.setitem(md17.MD17_MOLECULES, "ethanol", "HO")
    archive = {"revised": True, "source": tmp_path / "archive", "progress": False}
    assert md17.import_md17("ethanol", tmp_path / "z.h5", **archive).frames == 4
    assert np.load(tmp_path / "rmd17_ethanol.npz").files == ["precious"]
    cut = tmp_path / "cut.tar.bz2"
    cut.write_bytes(server.content[: 2 * len(server.content) // 3])
    with pytest.raises(DataError, match=r"cut\.tar\.bz2"):
        md17.import_md17("ethanol", tmp_path / "y.h5", revised=True, source=cut, progress=False)
    assert not (tmp_path / "y.h5").exists()
