package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/internal/kernel"
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
		Long: `Print the version, the revision it was built from, the Go version, the platform
and the kernels in use.

Examples:
  loratool version
  loratool version --json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.runVersion() },
	}
}

type versionJSON struct {
	Schema   string `json:"schema"`
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Kernels  string `json:"kernels"`
}

func (a *App) runVersion() error {
	v := versionJSON{
		"loratool.version/v1", buildVersion(), buildSetting("vcs.revision"), buildSetting("vcs.modified") == "true",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, kernel.Level(),
	}
	if a.json {
		a.printJSON(v)
		return nil
	}
	fmt.Fprintf(a.out, "loratool %s\n", v.Version)
	if v.Revision != "" {
		dirty := ""
		if v.Modified {
			dirty = " (modified)"
		}
		fmt.Fprintf(a.out, "revision %s%s\n", v.Revision, dirty)
	}
	fmt.Fprintf(a.out, "%s %s/%s, %s kernels\n", v.Go, v.OS, v.Arch, v.Kernels)
	return nil
}
