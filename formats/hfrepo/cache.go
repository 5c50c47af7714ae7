package hfrepo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// repoID matches "name" and "org/name" as the hub allows them. Two dots or two
// dashes in a row are not allowed there, which also keeps ".." out of paths.
var repoID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$`)

// commitHash matches a revision that is a commit already.
var commitHash = regexp.MustCompile(`^[0-9a-f]{40}$`)

// Cache is the local hub cache, read only: loratool never fetches.
type Cache struct{ Root string }

// DefaultCache finds the cache the way huggingface_hub does: HF_HUB_CACHE, the
// older HUGGINGFACE_HUB_CACHE, HF_HOME/hub, and HF_HOME defaults to
// $XDG_CACHE_HOME/huggingface or ~/.cache/huggingface. Without any of them, and
// without a home, there is no cache: the zero value, in which nothing is found.
func DefaultCache(getenv func(string) string) Cache {
	user := getenv("HOME")
	if user == "" {
		user = getenv("USERPROFILE") // Windows
	}
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"} {
		if dir := getenv(name); dir != "" {
			return Cache{Root: expandHome(dir, user)}
		}
	}
	if dir := getenv("HF_HOME"); dir != "" {
		return Cache{Root: filepath.Join(expandHome(dir, user), "hub")}
	}
	if dir := getenv("XDG_CACHE_HOME"); dir != "" {
		return Cache{Root: filepath.Join(expandHome(dir, user), "huggingface", "hub")}
	}
	if user == "" {
		return Cache{}
	}
	return Cache{Root: filepath.Join(user, ".cache", "huggingface", "hub")}
}

// expandHome replaces a leading "~", as huggingface_hub does: the variables are
// often set where no shell has done it.
func expandHome(path, home string) string {
	if rest, ok := strings.CutPrefix(path, "~"); ok && home != "" && (rest == "" || os.IsPathSeparator(rest[0])) {
		return home + rest
	}
	return path
}

// IsRepoID reports whether ref could be a repository id ("org/name"), possibly
// with "@revision".
func IsRepoID(ref string) bool {
	name, _, _ := strings.Cut(ref, "@")
	return repoID.MatchString(name) && !strings.Contains(name, "..") && !strings.Contains(name, "--")
}

// NotCachedError says that a repository is not in the local cache.
type NotCachedError struct {
	Repo, Revision, Root string
}

func (e *NotCachedError) Error() string {
	return fmt.Sprintf("%q (revision %q) is neither a local path nor in the hub cache", e.Repo, e.Revision)
}

// Hint tells how to get the repository, if it can be one.
func (e *NotCachedError) Hint() string {
	switch {
	case !IsRepoID(e.Repo):
		return ""
	case e.Revision == mainRevision:
		return "hf download " + e.Repo
	}
	return fmt.Sprintf("hf download %s --revision %q", e.Repo, e.Revision)
}

// mainRevision is the revision of a reference that names none.
const mainRevision = "main"

// Snapshot returns the folder of ref ("org/name" or "org/name@revision", main
// by default) and the commit it stands for.
func (c Cache) Snapshot(ref string) (dir, commit string, err error) {
	name, revision, ok := strings.Cut(ref, "@")
	if !ok {
		revision = mainRevision
	}
	missing := &NotCachedError{Repo: name, Revision: revision, Root: c.Root}
	if c.Root == "" || !IsRepoID(ref) || !filepath.IsLocal(filepath.FromSlash(revision)) {
		return "", "", missing
	}
	repo := filepath.Join(c.Root, "models--"+strings.ReplaceAll(name, "/", "--"))
	commit = revision
	if !commitHash.MatchString(revision) {
		data, err := os.ReadFile(filepath.Join(repo, "refs", filepath.FromSlash(revision)))
		if errors.Is(err, fs.ErrNotExist) {
			return "", "", missing
		}
		if err != nil {
			return "", "", fmt.Errorf("reading the hub cache: %w", err)
		}
		if commit = strings.TrimSpace(string(data)); !commitHash.MatchString(commit) {
			return "", "", fmt.Errorf("reading the hub cache: revision %q of %q does not hold a commit", revision, name)
		}
	}
	dir = filepath.Join(repo, "snapshots", commit)
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return "", "", missing
	}
	return dir, commit, nil
}

// Repos lists the repository ids in the cache, for shell completion.
func (c Cache) Repos() []string {
	entries, err := os.ReadDir(c.Root)
	if err != nil {
		return nil
	}
	var repos []string
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), "models--"); ok && e.IsDir() {
			repos = append(repos, strings.Replace(rest, "--", "/", 1))
		}
	}
	return repos
}
