package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/verify"
)

// checkConverted wants a base and nothing else.
func (f *verifyFlags) checkConverted(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageHint(cmd.CommandPath()+" --help", "with --converted there is no path to check beside, got %q", args[0])
	}
	for _, name := range []string{"adapter", "merged", "quantized", "loftq", "init-adapter", "moe-b-layout", "train-base", "mha-formula", "end-to-end"} {
		if cmd.Flags().Changed(name) {
			return usagef("--converted and --%s exclude each other", name)
		}
	}
	if f.merge.base == "" {
		return usagef("--base is missing")
	}
	return nil
}

// verifyConversion checks a model against the one it was converted from.
func (a *App) verifyConversion(ctx context.Context, paths []string, f *verifyFlags, o verify.Options) (*verify.Report, error) {
	in := new(mergeInputs)
	defer in.close()
	for _, path := range []string{f.merge.base, paths[0]} {
		m, err := checkpoint.Open(path, a.cache())
		if err != nil {
			return nil, err
		}
		in.models = append(in.models, m)
	}
	if err := f.admit(a, []string{"base", "converted"}, in.models...); err != nil {
		return nil, err
	}
	report, err := verify.Conversion(ctx, in.models[0], in.models[1], o)
	if err != nil {
		return nil, err
	}
	if err := f.addProvenance(ctx, report, in.models[1], in.models[:1], o); err != nil {
		return nil, err
	}
	return report, in.checkUnchanged()
}

type conversionJSON struct {
	Tensors int   `json:"tensors"` // that were compared
	Values  int64 `json:"values"`
	Exact   int64 `json:"exact_values"`   // are the base's
	Rounded int64 `json:"rounded_values"` // are the nearest of another type
}

func describeConversion(f *verify.ConversionFigures) *conversionJSON {
	if f == nil {
		return nil
	}
	return &conversionJSON{f.Tensors, f.Values, f.Exact, f.Rounded}
}

func (c *conversionJSON) print(w io.Writer) {
	if c == nil {
		return
	}
	fmt.Fprintf(w, "conversion: %s of %d values are the base's, %s rounded to their type, in %s\n",
		percent(number(c.Exact)/number(max(c.Values, 1))), c.Values, percent(number(c.Rounded)/number(max(c.Values, 1))), countOf(c.Tensors, "tensor"))
}
