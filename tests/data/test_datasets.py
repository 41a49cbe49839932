import hashlib
import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.data import datasets as module
from cytoglot.data.datasets import Dataset, datasets, find_dataset, known_datasets, load_dataset, resolve_source
from cytoglot.data.download import cache_folder, fetch, unpack
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
    with pytest.raises(UnknownNameError, match="unknown data set 'pbmc68k'; did you mean 'pbmc68k_reduced'"):
        load_dataset("pbmc68k")
    with pytest.raises(InputError, match=r"absent\.h5ad is neither a file or folder nor the name of a data set"):
        resolve_source("absent.h5ad")


def test_every_entry_states_source_and_licence():
    for name, entry in datasets.items():
        assert isinstance(entry, Dataset)
        assert entry.name == name
        assert entry.description
        assert entry.licence
        assert entry.source
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
    with pytest.raises(InputError, match=r"must have the checksum sha256:.*, found sha256:.*changed or cut off"):
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


def test_a_registered_download_goes_to_its_own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "datasets", module.Registry("data set"))
    matrix = b"%%MatrixMarket matrix coordinate integer general\n3 2 3\n1 1 4\n3 1 1\n2 2 7\n"
    members = {
        "inner/matrix.mtx": matrix,
        "inner/genes.tsv": b"ENSG1\tCD3E\nENSG2\tLYZ\nENSG3\tNKG7\n",
        "inner/barcodes.tsv": b"AAA-1\nCCC-1\n",
    }
    archive = make_archive(tmp_path / "toy.tar.gz", members)
    module._register_download(
        "toy",
        url=archive.as_uri(),
        checksum=sha256(archive.read_bytes()),
        description="d",
        licence="CC0",
        source="s",
        member="inner",
    )
    path = find_dataset("toy").path()
    assert path == tmp_path / "cache" / "toy" / "unpacked" / "inner"
    assert (path / "matrix.mtx").read_bytes() == matrix
    adata = load_dataset("toy")
    assert adata.X.toarray().tolist() == [[4, 0, 1], [0, 7, 0]]
    assert list(adata.var_names) == ["CD3E", "LYZ", "NKG7"]


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
