package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// buildVersion is the module's version as the toolchain stamped it, "devel" for
// a build from a working tree without one.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

func buildSetting(key string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == key {
				return s.Value
			}
		}
	}
	return ""
}

func (a *App) newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Version, build and platform",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return a.runVersion() },
	}
}

func (a *App) runVersion() error {
	v := struct {
		Schema   string `json:"schema"`
		Version  string `json:"version"`
		Revision string `json:"revision,omitempty"`
		Modified bool   `json:"modified,omitempty"`
		Go       string `json:"go"`
		OS       string `json:"os"`
		Arch     string `json:"arch"`
		Kernels  string `json:"kernels"`
	}{
		"loratool.version/v1", buildVersion(), buildSetting("vcs.revision"), buildSetting("vcs.modified") == "true",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, "generic",
	}
	if a.json {
		e := json.NewEncoder(a.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	fmt.Fprintf(a.Stdout, "loratool %s\n", v.Version)
	if v.Revision != "" {
		dirty := ""
		if v.Modified {
			dirty = " (modified)"
		}
		fmt.Fprintf(a.Stdout, "revision %s%s\n", v.Revision, dirty)
	}
	fmt.Fprintf(a.Stdout, "%s %s/%s, %s kernels\n", v.Go, v.OS, v.Arch, v.Kernels)
	return nil
}
