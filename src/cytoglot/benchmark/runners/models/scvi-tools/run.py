"""Fits scVI, or scVI and then scANVI, and writes the latent means (n cells × latent dimensions)."""

from __future__ import annotations

from contract import read_request, write_result


def main() -> None:
    """Embed the cells of the folder that the first argument names."""
    request = read_request()
    cells, options = request.cells, request.options
    if options["method"] not in ("scvi", "scanvi"):
        raise SystemExit(f"method must be scvi or scanvi, found {options['method']!r}")
    has_labels = "label" in cells.obs and (cells.obs["label"] != "unknown").any()
    if options["method"] == "scanvi" and not has_labels:
        raise SystemExit("scanvi needs labels of training cells; pass --label-column, with 'unknown' for other cells")
    import scvi

    scvi.settings.seed = request.seed
    batch = "batch" if "batch" in cells.obs else None
    if 0 < options["top_genes"] < cells.n_vars:
        import scanpy as sc

        sc.pp.highly_variable_genes(
            cells, n_top_genes=options["top_genes"], flavor="seurat_v3", batch_key=batch, subset=True
        )
    scvi.model.SCVI.setup_anndata(cells, batch_key=batch)
    model = scvi.model.SCVI(
        cells,
        n_latent=options["latent_dimensions"],
        n_layers=options["layers"],
        gene_likelihood=options["likelihood"],
    )
    fit = {"batch_size": options["batch_size"], "enable_progress_bar": False, "logger": None}
    model.train(max_epochs=options["epochs"] or None, **fit)
    if options["method"] == "scanvi":
        model = scvi.model.SCANVI.from_scvi_model(model, labels_key="label", unlabeled_category="unknown")
        model.train(max_epochs=options["scanvi_epochs"] or None, **fit)
    write_result(request, model.get_latent_representation())


if __name__ == "__main__":
    main()
