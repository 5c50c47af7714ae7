package hfrepo

import (
	"path/filepath"
	"strings"
)

// IsSideFile reports whether a file of a model folder is copied to a model
// made from it: everything small that belongs to the model, and nothing that
// would contradict the new weights (other weight formats, indexes, hashes, the old
// card, training state, version control).
func IsSideFile(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch name {
	case "config.json", "adapter_config.json", "README.md", "training_args.bin", "optimizer.pt",
		"scheduler.pt", "trainer_state.json", "all_results.json", "train_results.json",
		"eval_results.json", "params.json", "manifest.json":
		return false
	}
	if strings.HasSuffix(name, ".index.json") || strings.Contains(name, ".partial-") {
		return false
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json", ".model", ".txt", ".jinja", ".py", ".tiktoken", ".vocab", ".spm", ".md", ".yaml", ".yml":
		return true
	}
	switch strings.ToUpper(strings.TrimSuffix(name, filepath.Ext(name))) {
	case "LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "MERGES", "VOCAB":
		return true
	}
	return false
}
