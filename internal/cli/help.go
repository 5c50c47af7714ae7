package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// newHelp is help for commands and topics. Unlike cobra's it fails for what
// there is no help on.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND | TOPIC]",
		Short: "Help about a command or a topic",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range cmd.Root().Commands() {
				if len(args) == 0 && !c.Hidden {
					names = append(names, c.Name()+"\t"+c.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(root, strings.Join(rest, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// printUsage writes what stands below the text of a help: how to call the
// command, its flags, and what else there is.
func printUsage(cmd *cobra.Command) error {
	w := cmd.OutOrStdout()
	if cmd.Runnable() {
		fmt.Fprintf(w, "Usage:\n  %s\n", cmd.UseLine())
	}
	printChildren(cmd, "Commands:", (*cobra.Command).Runnable)
	if flags := cmd.LocalFlags(); cmd.Runnable() && flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\nFlags:\n%s", flags.FlagUsages())
	}
	if flags := cmd.InheritedFlags(); cmd.Runnable() && flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\nFlags of every command:\n%s", flags.FlagUsages())
	}
	printChildren(cmd, "Topics of help:", (*cobra.Command).IsAdditionalHelpTopicCommand)
	return nil
}

func printChildren(cmd *cobra.Command, title string, choose func(*cobra.Command) bool) {
	for _, c := range cmd.Commands() {
		if c.Hidden || !choose(c) {
			continue
		}
		if title != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s\n", title)
			title = ""
		}
		fmt.Fprintf(cmd.OutOrStdout(), "  %-12s %s\n", c.Name(), c.Short)
	}
}

// newExitCodes and newEnvironment are topics of help: they can't be run.
func newExitCodes() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `What the exit codes mean:

  0    done
  1    failed while working (I/O, disk full, numerical failure, bug)
  2    wrong usage
  3    verify or diff found problems or differences
  4    an input is malformed, unsupported, incomplete or does not fit the others
  5    refused: output exists, would overwrite an input, not enough disk or memory
  130  cancelled

Scripts must treat codes they don't know as failure.`,
	}
}

func newEnvironment() *cobra.Command {
	return &cobra.Command{
		Use:   "environment",
		Short: "Environment variables that are read",
		Long: `Environment variables that are read; a flag wins over them:

  HF_HOME, HF_HUB_CACHE   where the local hub cache lies (read only)
  LORATOOL_MEMORY         default of --memory
  LORATOOL_JOBS           default of --jobs
  LORATOOL_CPU            kernels to use: generic, avx2 or avx512 (default: the
                          best of this CPU; all give the same bytes)
  LORATOOL_PROGRESS       seconds between progress lines when stderr is no
                          terminal (default 30); 0 for none
  LORATOOL_DEBUG          print a stack with an internal error
  NO_COLOR                no colours on a terminal, as with --no-color
  CLICOLOR_FORCE          colours also where the output is no terminal, as in the
                          logs of build machines
  TERM=dumb               no colours, progress in lines instead of a bar

No other file or variable
configures loratool, and it never uses the network.`,
	}
}
