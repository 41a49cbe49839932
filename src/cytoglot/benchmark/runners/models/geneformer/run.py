"""Geneformer: rank-value tokens through the published BERT (n cells × hidden size)."""

from __future__ import annotations

from contract import read_request, write_result
from gene_tables import ensembl_ids, read_table
from rank_bert import embed_tokens, rank_rows


def main() -> None:
    """Embed the cells of the folder that the first argument names."""
    request = read_request()
    options, weights = request.options, request.weights
    tokens = read_table(weights / "token_dictionary.pkl")
    medians = read_table(weights / "gene_median_dictionary.pkl")
    ids = ensembl_ids(request.cells, read_table(weights / "gene_name_id_dict.pkl"))
    first, last = (tokens["<cls>"], tokens["<eos>"]) if options["special_tokens"] else (None, None)
    rows = rank_rows(request.cells, ids, tokens, medians, max_tokens=options["max_tokens"], first=first, last=last)
    from transformers import BertForMaskedLM

    vectors_nd = embed_tokens(
        BertForMaskedLM.from_pretrained(weights),
        rows,
        layer=options["layer"],
        pooling=options["pooling"],
        n_first=int(options["special_tokens"]),
        n_last=int(options["special_tokens"]),
        batch_size=options["batch_size"],
    )
    write_result(request, vectors_nd)


if __name__ == "__main__":
    main()
