import hashlib
import http.server
import io
import tarfile
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.data import datasets as module
from cytoglot.data.datasets import Dataset, datasets, find_dataset, known_datasets, load_dataset, resolve_source
from cytoglot.download import cache_folder, fetch, unpack
from cytoglot.errors import InputError, MissingExtraError, UnknownNameError


@pytest.fixture
def local_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    adata = AnnData(
        sparse.csr_matrix(np.eye(3, dtype=np.float32)), obs=pd.DataFrame({"cell_type": list("ABA")}, list("xyz"))
    )
    adata.write_h5ad(folder / "tiny.h5ad")
    monkeypatch.setenv("CYTOGLOT_DATA", str(folder))
    return folder


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


# By name


def test_the_bundled_data_set_has_its_labels_as_cell_type():
    pytest.importorskip("scanpy")
    adata = load_dataset("pbmc68k_reduced")
    assert adata.shape == (700, 765)
    assert adata.obs["cell_type"].value_counts()["Dendritic"] == 240
    assert (adata.obs["cell_type"] == adata.obs["bulk_labels"]).all()


def test_the_bundled_data_set_without_scanpy_names_the_extra(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("cytoglot.extras.importlib.import_module", absent)
    with pytest.raises(
        MissingExtraError, match=r"bundled data set '10x_pbmc68k_reduced.h5ad' needs 'scanpy'.*cytoglot\[report\]"
    ):
        load_dataset("pbmc68k_reduced")


def test_each_h5ad_of_the_folder_has_a_name(local_folder):
    assert "tiny" in known_datasets()
    assert load_dataset("tiny").obs["cell_type"].tolist() == ["A", "B", "A"]
    assert resolve_source("tiny") == local_folder / "tiny.h5ad"


def test_a_folder_that_is_not_there_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CYTOGLOT_DATA", str(tmp_path / "absent"))
    assert set(known_datasets()) == set(datasets)
    assert module.knowledge_table("hgnc.tsv") is None


def test_an_existing_path_wins_over_a_name(local_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve_source("tiny").is_dir()


def test_the_source_of_a_command_may_be_the_bundled_data_set():
    pytest.importorskip("scanpy")
    assert "cell_type" in resolve_source("pbmc68k_reduced").obs


def test_an_unknown_name_is_answered_with_the_nearest(local_folder):
    with pytest.raises(UnknownNameError, match=r"unknown data set 'pbmc68k'; did you mean .*'pbmc68k_reduced'"):
        load_dataset("pbmc68k")
    with pytest.raises(InputError, match=r"absent\.h5ad is neither a file or folder nor the name of a data set"):
        resolve_source("absent.h5ad")


def test_every_entry_states_licence_and_citation():
    for name, entry in datasets.items():
        assert isinstance(entry, Dataset)
        assert entry.name == name
        assert entry.description
        assert entry.licence
        assert entry.citation
    assert {"pbmc68k_reduced", "pbmc3k_10x"} <= set(datasets)


# Downloads


def test_a_download_is_checked_kept_and_not_fetched_again(tmp_path):
    remote = tmp_path / "remote.bin"
    remote.write_bytes(b"counts" * 1000)
    target = tmp_path / "cache" / "data.bin"
    checksum = sha256(b"counts" * 1000)
    assert fetch(remote.as_uri(), checksum=checksum, target=target) == target
    assert target.read_bytes() == b"counts" * 1000
    remote.unlink()
    assert fetch(remote.as_uri(), checksum=checksum, target=target) == target


def test_md5_sums_of_older_sources_are_checked_too(tmp_path):
    remote = tmp_path / "remote.bin"
    remote.write_bytes(b"x")
    fetch(remote.as_uri(), checksum="md5:" + hashlib.md5(b"x").hexdigest(), target=tmp_path / "t")
    with pytest.raises(ValueError, match="must begin with 'sha256:' or 'md5:', found 'crc:1'"):
        fetch(remote.as_uri(), checksum="crc:1", target=tmp_path / "u")


def test_a_damaged_download_leaves_nothing_behind(tmp_path):
    remote = tmp_path / "remote.bin"
    remote.write_bytes(b"cut off")
    target = tmp_path / "cache" / "data.bin"
    with pytest.raises(InputError, match=r"must have the checksum sha256:.*, found sha256:.*changed at its source"):
        fetch(remote.as_uri(), checksum=sha256(b"whole"), target=target)
    assert list(target.parent.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_replaced(tmp_path, caplog):
    remote, target = tmp_path / "remote.bin", tmp_path / "data.bin"
    remote.write_bytes(b"whole")
    target.write_bytes(b"damaged")
    fetch(remote.as_uri(), checksum=sha256(b"whole"), target=target)
    assert target.read_bytes() == b"whole"
    assert "is downloaded again" in caplog.text


def test_an_address_that_cannot_be_read_says_where_to_put_the_file(tmp_path):
    target = tmp_path / "cache" / "data.bin"
    with pytest.raises(InputError, match=r"could not download file:.*absent.*put it at .*data\.bin"):
        fetch((tmp_path / "absent").as_uri(), checksum=sha256(b""), target=target)
    assert not target.exists()


def test_an_archive_is_unpacked_once(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", {"folder/matrix.txt": b"1"})
    folder = unpack(archive, tmp_path / "out")
    assert (folder / "folder" / "matrix.txt").read_bytes() == b"1"
    archive.unlink()
    assert unpack(archive, tmp_path / "out") == folder


def test_an_archive_that_is_none_or_leaves_its_folder_is_refused(tmp_path):
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"bad\.tar\.gz cannot be unpacked"):
        unpack(tmp_path / "bad.tar.gz", tmp_path / "out")
    with pytest.raises(InputError, match=r"cannot be unpacked: .*outside"):
        unpack(make_archive(tmp_path / "evil.tar.gz", {"../evil.txt": b"1"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil.txt").exists()


def test_a_10x_archive_is_unpacked_in_its_own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path / "cache"))
    matrix = b"%%MatrixMarket matrix coordinate integer general\n3 2 3\n1 1 4\n3 1 1\n2 2 7\n"
    inner = "filtered_gene_bc_matrices/hg19"
    members = {
        f"{inner}/matrix.mtx": matrix,
        f"{inner}/genes.tsv": b"ENSG1\tCD3E\nENSG2\tLYZ\nENSG3\tNKG7\n",
        f"{inner}/barcodes.tsv": b"AAA-1\nCCC-1\n",
    }
    archive = make_archive(tmp_path / "toy.tar.gz", members)
    named(monkeypatch, "pbmc3k_10x", (archive.as_uri(), sha256(archive.read_bytes())))
    path = find_dataset("pbmc3k_10x").path()
    assert path == tmp_path / "cache" / "pbmc3k_10x" / "unpacked" / inner
    assert (path / "matrix.mtx").read_bytes() == matrix
    adata = load_dataset("pbmc3k_10x")
    assert adata.X.toarray().tolist() == [[4, 0, 1], [0, 7, 0]]
    assert list(adata.var_names) == ["CD3E", "LYZ", "NKG7"]


# From a server


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of a file called cut-… it promises all bytes and sends half of them."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.name.startswith("cut"):
            super().do_GET()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder, the address under which a server on this machine serves it, and a function that ends the server."""
    folder = tmp_path / "remote"
    folder.mkdir()
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path / "cache"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop():
        server.shutdown()
        thread.join()
        server.server_close()

    yield folder, f"http://127.0.0.1:{server.server_port}", stop
    stop()


def named(monkeypatch, name, *downloads):
    """Let the files of a registered data set come from other addresses, given with their checksums."""
    entry = datasets[name]
    files = [
        replace(file, url=url, checksum=checksum)
        for file, (url, checksum) in zip(entry.downloads, downloads, strict=True)
    ]
    monkeypatch.setitem(datasets._entries, name, replace(entry, downloads=tuple(files)))


@pytest.fixture
def pbmc3k(remote, monkeypatch):
    """Both files of pbmc3k, small, at the server: three cells with counts, two of them with a label."""
    folder, address, stop = remote
    counts = AnnData(
        sparse.csr_matrix(np.array([[1, 2], [0, 3], [4, 0]], np.float32)),
        obs=pd.DataFrame(index=["AAA-1", "CCC-1", "GGG-1"]),
        var=pd.DataFrame({"gene_ids": ["ENSG1", "ENSG2"]}, index=["CD3E", "LYZ"]),
    )
    labelled = AnnData(
        np.zeros((2, 1), np.float32),
        obs=pd.DataFrame({"louvain_cell_types": pd.Categorical(["B cells", "CD4 T cells"])}, index=["GGG-1", "AAA-1"]),
        var=pd.DataFrame(index=["LYZ"]),
    )
    counts.write_h5ad(folder / "counts.h5ad")
    labelled.write_h5ad(folder / "labels.h5ad")
    names = ("counts.h5ad", "labels.h5ad")
    named(monkeypatch, "pbmc3k", *((f"{address}/{n}", sha256((folder / n).read_bytes())) for n in names))
    return folder, stop


def test_counts_are_joined_with_labels_by_barcode_and_need_no_server_afterwards(pbmc3k, caplog):
    _, stop = pbmc3k
    assert module.list().loc["pbmc3k", "where"] == "not downloaded"
    with caplog.at_level("INFO"):
        path = module.get("pbmc3k")
    assert "licence 10x Genomics data: CC BY 4.0" in caplog.text
    assert "cite 10x Genomics, 3k PBMCs" in caplog.text
    written = path.stat().st_mtime_ns
    stop()
    adata = load_dataset("pbmc3k")
    assert adata.obs["cell_type"].tolist() == ["CD4 T cells", "unassigned", "B cells"]
    assert adata.X.toarray().tolist() == [[1, 2], [0, 3], [4, 0]]
    assert adata.uns["provenance"]["licence"] == datasets["pbmc3k"].licence
    assert module.get("pbmc3k") == path
    assert path.stat().st_mtime_ns == written
    assert module.list().loc["pbmc3k", "where"] == "downloaded"


def test_labels_of_other_cells_are_refused_and_nothing_is_joined(pbmc3k, remote, monkeypatch):
    folder, _ = pbmc3k
    other = AnnData(np.zeros((1, 1), np.float32), obs=pd.DataFrame({"louvain_cell_types": ["B"]}, index=["TTT-1"]))
    other.write_h5ad(folder / "labels.h5ad")
    names = ("counts.h5ad", "labels.h5ad")
    named(monkeypatch, "pbmc3k", *((f"{remote[1]}/{n}", sha256((folder / n).read_bytes())) for n in names))
    with pytest.raises(InputError, match=r"1 of 1 labelled cells of .* are not in .*pbmc3k_raw.*'TTT-1'"):
        module.get("pbmc3k")
    assert not (cache_folder() / "pbmc3k" / "pbmc3k.h5ad").exists()


@pytest.mark.parametrize(
    ("name", "checksum", "message"),
    [
        ("whole.bin", sha256(b"other"), r"must have the checksum sha256:.*, found sha256:.*the file was deleted"),
        ("cut.bin", sha256(b"counts" * 1000), r"the connection ended after 3,000 of 6,000 bytes"),
        ("absent.bin", sha256(b"counts" * 1000), r"could not download http://.*absent\.bin: HTTP Error 404"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(remote, tmp_path, name, checksum, message):
    folder, address, _ = remote
    for held in ("whole.bin", "cut.bin"):
        (folder / held).write_bytes(b"counts" * 1000)
    target = tmp_path / "cache" / "data.bin"
    with pytest.raises(InputError, match=message) as refused:
        fetch(f"{address}/{name}", checksum=checksum, target=target)
    assert "\n" not in str(refused.value)
    assert list(target.parent.iterdir()) == []
    # the next try starts from the beginning
    fetch(f"{address}/whole.bin", checksum=sha256(b"counts" * 1000), target=target)
    assert target.read_bytes() == b"counts" * 1000


def test_a_server_that_is_gone_is_named_with_the_place_for_the_file(remote, tmp_path):
    _, address, stop = remote
    stop()
    with pytest.raises(InputError, match=r"could not download http://127.*[Rr]efused.*put it at .*data\.bin"):
        fetch(f"{address}/whole.bin", checksum=sha256(b""), target=tmp_path / "data.bin")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("CYTOGLOT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cytoglot"
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def make_archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
