package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// noArgs and oneArg check the number of arguments as usage errors.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q; flags name the inputs", args[0])
	}
	return nil
}

func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return &usageError{&hinted{fmt.Errorf("%s takes one %s, got %d", cmd.Name(), what, len(args)), "loratool " + cmd.Name() + " --help"}}
		}
		return nil
	}
}

func unknownCommand(root *cobra.Command, name string) error {
	hint := "loratool help lists the commands"
	if near := root.SuggestionsFor(name); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return &usageError{&hinted{fmt.Errorf("unknown command %q", name), hint}}
}

// nearestFlag suggests the flag that shares the longest beginning with a
// misspelt one.
func nearestFlag(cmd *cobra.Command, name string) string {
	best, length := "", 1
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		n := 0
		for n < len(name) && n < len(f.Name) && name[n] == f.Name[n] {
			n++
		}
		if n > length {
			best, length = f.Name, n
		}
	})
	if best == "" {
		return "loratool " + cmd.Name() + " --help lists the flags"
	}
	return "did you mean --" + best + "?"
}
