// Command docgen writes the pages of docs/cli from the help of loratool, one a
// command or topic, and the schemas of its documents from their types:
//
//	go run ./internal/docgen docs/cli schemas
//
// The pages hold no time and no version; a test fails when they are stale.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/internal/cli"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: docgen PAGES SCHEMAS")
		os.Exit(2)
	}
	err := write(os.Args[1], "*.md", pages(cli.Tree()))
	if err == nil {
		err = write(os.Args[2], "*.schema.json", schemas())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

// write makes the folder hold the pages and no other ones.
func write(dir, pattern string, pages map[string]string) error {
	old, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return err
	}
	for _, path := range old {
		if _, ok := pages[filepath.Base(path)]; !ok {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(pages[name]), 0o666); err != nil {
			return err
		}
	}
	return nil
}

// schemas returns the schemas by file name.
func schemas() map[string]string {
	all := make(map[string]string)
	for name, text := range cli.Schemas() {
		all[name] = string(text)
	}
	return all
}

// pages returns the pages by file name.
func pages(root *cobra.Command) map[string]string {
	all := map[string]string{fileName(root): page(root)}
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "help" {
			all[fileName(c)] = page(c)
		}
	}
	return all
}

func fileName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "_") + ".md"
}

// page writes what help prints as Markdown.
func page(cmd *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s", cmd.CommandPath(), fenced(cmd.Long))
	if cmd.Runnable() {
		cmd.InitDefaultHelpFlag()
		fmt.Fprintf(&b, "\n## Usage\n\n```text\n%s\n\n%s```\n", cmd.UseLine(), cmd.LocalFlags().FlagUsages())
		if inherited := cmd.InheritedFlags(); inherited.HasAvailableFlags() {
			fmt.Fprintf(&b, "\nFlags of every command:\n\n```text\n%s```\n", inherited.FlagUsages())
		}
	}
	if !cmd.HasParent() {
		b.WriteString("\n## Commands and topics\n\n")
		for _, c := range cmd.Commands() {
			if !c.Hidden && c.Name() != "help" {
				fmt.Fprintf(&b, "- [%s](%s): %s\n", c.Name(), fileName(c), c.Short)
			}
		}
		return b.String()
	}
	fmt.Fprintf(&b, "\nSee also: [%s](%s), [scripting](../scripting.md).\n", cmd.Root().Name(), fileName(cmd.Root()))
	return b.String()
}

// fenced puts fences around the indented lines of a help text, which are
// commands and tables.
func fenced(text string) string {
	var b strings.Builder
	inside := false
	for _, line := range strings.Split(text, "\n") {
		indented, ok := strings.CutPrefix(line, "  ")
		switch {
		case ok && !inside:
			b.WriteString("\n```text\n")
		case !ok && inside:
			b.WriteString("```\n")
		}
		inside = ok
		b.WriteString(indented + "\n")
	}
	if inside {
		b.WriteString("```\n")
	}
	return strings.ReplaceAll(b.String(), "\n\n\n", "\n\n")
}
