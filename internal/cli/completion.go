package cli

import (
	"io"
	"slices"

	"github.com/spf13/cobra"
)

// newCompletion prints the script that makes a shell complete command lines.
func (a *App) newCompletion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Script for the completion of a shell",
		Long: `Print the script that completes commands, flags, their values and the models of
the local hub cache in a shell: bash, zsh, fish or powershell.

Examples:
  source <(loratool completion bash)
  loratool completion bash > ~/.local/share/bash-completion/completions/loratool
  loratool completion zsh > "${fpath[1]}/_loratool"
  loratool completion fish > ~/.config/fish/completions/loratool.fish
  loratool completion powershell | Out-String | Invoke-Expression`,
		ValidArgs: shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := oneArg("shell")(cmd, args); err != nil {
				return err
			}
			if !slices.Contains(shells, args[0]) {
				return usagef("completion: %q is not one of bash, zsh, fish, powershell", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			return map[string]func(io.Writer) error{
				"bash":       func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
				"zsh":        root.GenZshCompletion,
				"fish":       func(w io.Writer) error { return root.GenFishCompletion(w, true) },
				"powershell": root.GenPowerShellCompletionWithDesc,
			}[args[0]](a.out)
		},
	}
}

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// fixed completes one of a few values, each with a description after a tab.
func fixed(values ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

// models completes paths and the repositories of the hub cache.
func (a *App) models(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return a.cache().Repos(), cobra.ShellCompDirectiveDefault
}

func folders(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completeMerge gives the shell values for the flags of merge.
func (a *App) completeMerge(cmd *cobra.Command) {
	sizes := fixed("256MiB", "1GiB", "5GB")
	for flag, complete := range map[string]completer{
		"base":         a.models,
		"adapter":      folders,
		"init-adapter": folders,
		"dtype":        fixed("f32\t32-bit", "bf16\tbfloat16", "f16\tIEEE half", "f64\t64-bit"),
		"moe-b-layout": fixed("auto\tby the adapter's marks", "rank\tas PEFT packs it", "expert\tas Unsloth packs it"),
		"train-base":   fixed("nf4\tQLoRA, 4-bit NormalFloat", "nf4-dq\tthe same with double quantization", "fp4\t4-bit float", "fp4-dq\tthe same with double quantization", "int8\tLLM.int8"),
		"type":         fixed("nf4\t4-bit NormalFloat", "fp4\t4-bit float", "int8\tLLM.int8", "q8_0\tGGUF", "q4_k_m\tGGUF"),
		"blocksize":    fixed("32", "64", "128", "256", "512", "1024", "2048", "4096"),
		"memory":       sizes,
		"shard-size":   sizes,
		"jobs":         fixed(),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
}
