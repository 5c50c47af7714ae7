// Command loratool merges adapters into model checkpoints, file to file.
package main

import (
	"os"

	"github.com/loratool/loratool/internal/cli"
)

func main() { os.Exit(cli.Main()) }
