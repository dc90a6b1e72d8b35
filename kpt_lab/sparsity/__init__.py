"""Semi-structured sparsity: which two of four weights stay."""
