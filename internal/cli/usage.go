package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// usageHint is a usage error that says what to type.
func usageHint(hint, format string, args ...any) error {
	return &usageError{&hinted{fmt.Errorf(format, args...), hint}}
}

// noArgs and oneArg check the number of arguments as usage errors.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageHint(cmd.CommandPath()+" --help", "%s takes no arguments, got %q", cmd.Name(), args[0])
	}
	return nil
}

func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageHint(cmd.CommandPath()+" --help", "%s takes one %s, got %d", cmd.Name(), what, len(args))
		}
		return nil
	}
}

// usageOf words the errors of the flag parser.
func usageOf(cmd *cobra.Command, err error) error {
	var (
		unknown *pflag.NotExistError
		invalid *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
	)
	switch {
	case !cmd.HasParent() && cmd.Flags().NArg() > 0: // a flag of a command that there is not
		return unknownCommand(cmd, cmd.Flags().Arg(0))
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return usageHint(cmd.CommandPath()+" --help", "unknown flag -%s", unknown.GetSpecifiedName())
	case errors.As(err, &unknown):
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		hint := cmd.CommandPath() + " --help lists the flags"
		if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
			hint = "did you mean --" + near + "?"
		}
		return usageHint(hint, "unknown flag --%s", unknown.GetSpecifiedName())
	case errors.As(err, &invalid) && invalid.GetFlag().Value.Type() == "bool":
		return usagef("--%s: %q is not true or false", invalid.GetFlag().Name, invalid.GetValue())
	case errors.As(err, &invalid):
		return usagef("--%s: %w", invalid.GetFlag().Name, invalid.Unwrap())
	case errors.As(err, &missing):
		return usagef("--%s: a value is missing", missing.GetFlag().Name)
	}
	return &usageError{err}
}

func unknownCommand(root *cobra.Command, name string) error {
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	hint := "loratool help lists the commands"
	if near := nearest(name, names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return usageHint(hint, "unknown command %q", name)
}

// nearest returns the name that was probably meant: one that begins as typed,
// else the one with the fewest edits if these are few; "" for none.
func nearest(typed string, names []string) string {
	best, fewest := "", max(2, len(typed)/3)+1
	for _, name := range names {
		n := edits(typed, name)
		if len(typed) > 1 && strings.HasPrefix(name, typed) {
			n = 0
		}
		if n < fewest {
			best, fewest = name, n
		}
	}
	return best
}

// edits is the Levenshtein distance, in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			n := diagonal
			if a[i] != b[j] {
				n = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], n
		}
	}
	return row[len(b)]
}
