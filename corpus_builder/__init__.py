"""Cross-compiles C codebases into zstd WebDataset shards: one C function seen through every compiler."""
