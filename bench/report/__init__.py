"""Records of the benchmarks read, compared, and made into tables, plots and pages."""
