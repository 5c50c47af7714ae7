package verify

// MergeFigures sums up a comparison with a merge.
type MergeFigures struct {
	Unchanged int   // tensors that the merge leaves as they are
	Changed   int   // tensors that the adapters change
	Values    int64 // that were computed again
	Nearest   int64 // of these are the nearest that their type has
	// DeltaNorm is the norm of all that the adapters change, and Survival the part of
	// it that is in the stored weights: 1 is all of it.
	DeltaNorm, Survival float64
	Tensors             []MergedTensor // in the order of the plan
}

// MergedTensor is what was found about one tensor of a merge.
type MergedTensor struct {
	Tensor  string
	Changed bool  // by the adapters
	Values  int64 // that were computed again
	Nearest int64 // of these are the nearest that their type has
	Outside int64 // of these are farther off than one rounding
	// DeltaNorm is the norm of the change, and Survival the part of it that is there.
	DeltaNorm, Survival float64
}
