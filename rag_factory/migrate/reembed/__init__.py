"""The change of embedding model: a second column, filled and indexed beside the first, and swapped with it.

`begin` adds the column and a trigger that empties it where a text changes. `Filler` computes what is missing,
`build_indexes` and `measure_recall` make it ready, `cut_over` and `go_back` swap the two columns' names in
one short lock, and `drop_old` or `give_up` leave one of them. What is being done stands in the table
`rag_factory.reembeddings`, and changes in the same transaction as the schema: a process may be killed at any
moment, and the next one goes on.
"""
