"""One module for each operator of the bench; `OPERATOR` in it is what `bench.registry` lists."""
