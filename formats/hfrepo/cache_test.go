package hfrepo_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/hfrepo"
)

// TestDefaultCache guards the precedence of the variables.
func TestDefaultCache(t *testing.T) {
	at := filepath.FromSlash
	for _, c := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"all set", map[string]string{"HF_HUB_CACHE": "/hub", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg", "HOME": "/home"}, "/hub"},
		{"older name", map[string]string{"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg", "HOME": "/home"}, "/old"},
		{"HF_HOME", map[string]string{"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg", "HOME": "/home"}, "/hf/hub"},
		{"XDG_CACHE_HOME", map[string]string{"XDG_CACHE_HOME": "/xdg", "HOME": "/home"}, "/xdg/huggingface/hub"},
		{"HOME", map[string]string{"HOME": "/home"}, "/home/.cache/huggingface/hub"},
		{"Windows", map[string]string{"USERPROFILE": "/user"}, "/user/.cache/huggingface/hub"},
		{"empty is not set", map[string]string{"HF_HUB_CACHE": "", "HF_HOME": "", "HOME": "/home"}, "/home/.cache/huggingface/hub"},
		{"home sign", map[string]string{"HF_HUB_CACHE": "~/models", "HOME": "/home"}, "/home/models"},
		{"home sign in HF_HOME", map[string]string{"HF_HOME": "~", "HOME": "/home"}, "/home/hub"},
		{"another's home stays", map[string]string{"HF_HUB_CACHE": "~else/models", "HOME": "/home"}, "~else/models"},
		{"nothing", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := hfrepo.DefaultCache(func(key string) string { return c.env[key] })
			if got.Root != at(c.want) {
				t.Errorf("root %q, want %q", got.Root, at(c.want))
			}
		})
	}
}

func TestIsRepoID(t *testing.T) {
	for ref, want := range map[string]bool{
		"gpt2": true, "org/name": true, "org/name@main": true, "org/name@refs/pr/1": true, "Org-1/n.a_m-e": true,
		"": false, "/name": false, "org/": false, "a/b/c": false, "./name": false, "../name": false, ".name": false,
		"org/..": false, "org/a..b": false, "org/a--b": false, "or g/name": false, "org/name\n": false, `org\name`: false,
		"@main": false, "org/" + strings.Repeat("n", 97): false,
	} {
		if got := hfrepo.IsRepoID(ref); got != want {
			t.Errorf("IsRepoID(%q) is %v, want %v", ref, got, want)
		}
	}
}

const commit = "0123456789abcdef0123456789abcdef01234567"

// fakeCache makes a cache with one snapshot of org/name.
func fakeCache(t *testing.T) hfrepo.Cache {
	t.Helper()
	root := t.TempDir()
	repo := filepath.Join(root, "models--org--name")
	for _, dir := range []string{filepath.Join(repo, "snapshots", commit), filepath.Join(repo, "refs", "refs", "pr"), filepath.Join(root, "datasets--a--b")} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"refs/main": commit, "refs/refs/pr/1": commit + "\n", "refs/gone": strings.Repeat("f", 40), "refs/broken": "not a commit",
		"refs/inside": "../../secret", "refs/short": commit[:39],
	} {
		if err := os.WriteFile(filepath.Join(repo, filepath.FromSlash(name)), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return hfrepo.Cache{Root: root}
}

func TestSnapshot(t *testing.T) {
	cache := fakeCache(t)
	want := filepath.Join(cache.Root, "models--org--name", "snapshots", commit)
	for _, ref := range []string{"org/name", "org/name@main", "org/name@refs/pr/1", "org/name@" + commit} {
		if dir, c, err := cache.Snapshot(ref); err != nil || dir != want || c != commit {
			t.Errorf("%s: %q, %q, %v", ref, dir, c, err)
		}
	}
	for _, ref := range []string{
		"org/other", "name", "org/name@dev", "org/name@", "org/name@../main", "org/name@/etc", "org/name@gone",
		"org/name@" + strings.Repeat("e", 40), "../models--org--name", "datasets--a--b",
	} {
		_, _, err := cache.Snapshot(ref)
		missing, ok := errors.AsType[*hfrepo.NotCachedError](err)
		if !ok {
			t.Errorf("%s: error %v, want a NotCachedError", ref, err)
		} else if strings.Contains(missing.Error(), "\n") {
			t.Errorf("%s: error of several lines %q", ref, missing)
		}
	}
	for _, ref := range []string{"org/name@broken", "org/name@inside", "org/name@short"} {
		_, _, err := cache.Snapshot(ref)
		if err == nil || !strings.Contains(err.Error(), "does not hold a commit") {
			t.Errorf("%s: error %v", ref, err)
		}
	}
}

// TestNoCache guards that without any variable nothing of the working folder is
// taken for the cache.
func TestNoCache(t *testing.T) {
	cache := fakeCache(t)
	t.Chdir(cache.Root)
	if _, _, err := (hfrepo.Cache{}).Snapshot("org/name"); err == nil {
		t.Error("found in the working folder")
	}
}

func TestNotCachedHint(t *testing.T) {
	for _, c := range []struct{ repo, revision, want string }{
		{"org/name", "main", "hf download org/name"},
		{"org/name", "v1", `hf download org/name --revision "v1"`},
		{"no repository", "main", ""},
	} {
		e := &hfrepo.NotCachedError{Repo: c.repo, Revision: c.revision}
		if got := e.Hint(); got != c.want {
			t.Errorf("hint %q, want %q", got, c.want)
		}
	}
}

func TestRepos(t *testing.T) {
	cache := fakeCache(t)
	if err := os.Mkdir(filepath.Join(cache.Root, "models--gpt2"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cache.Root, "models--file"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if got, want := cache.Repos(), []string{"gpt2", "org/name"}; !slices.Equal(got, want) {
		t.Errorf("repositories %q, want %q", got, want)
	}
	if got := (hfrepo.Cache{Root: filepath.Join(cache.Root, "none")}).Repos(); len(got) != 0 {
		t.Errorf("repositories %q in no folder", got)
	}
}
