"""A text data folder: documents.parquet, one row for each document with its split.

Books, essays, a crawl: whatever a language model is trained on, and what it is measured on. A document keeps
its order; nothing else is known of it. The same text must not stand in two splits.
"""

from __future__ import annotations

import pyarrow as pa

from feedworks.contracts.tables import Column, Table

SPLITS = ("train", "valid", "test")

DOCUMENTS = Table(
    name="documents",
    kind="text",
    description="One row for each document.",
    columns=(
        Column(
            name="document_id", type=pa.int64(), side="content", minimum=0, description="Key of the document."
        ),
        Column(name="title", type=pa.string(), side="content", description="What people call it."),
        Column(
            name="split",
            type=pa.string(),
            side="context",
            one_of=SPLITS,
            description="train for learning, valid for choosing, test for reporting.",
        ),
        # Offsets of 64 bits: a batch of books may hold more than 2 GB.
        Column(
            name="text",
            type=pa.large_string(),
            side="content",
            is_prose=True,
            apart_by="split",
            description="All of it, lines ended by a single newline.",
        ),
    ),
    key=("document_id",),
    sorted_by=("document_id",),
    group_rows=1024,
)

TEXT_FOLDER: tuple[Table, ...] = (DOCUMENTS,)
