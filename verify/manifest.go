package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

const (
	// manifestFile lists the tensors of a folder; only one of this schema is ours.
	manifestFile   = "manifest.json"
	manifestSchema = "loratool.manifest/v1"
	// maxManifest has room for a few hundred thousand tensors.
	maxManifest = 64 << 20
)

// Manifest lists the tensors of a checkpoint with the hashes of their bytes. It knows
// nothing of files and shards, so that a model that is cut in another way has the same.
type Manifest struct {
	Schema  string          `json:"schema"`
	Tensors []ManifestEntry `json:"tensors"`
}

// ManifestEntry is a tensor: its type, its shape and the SHA-256 of its bytes, row by row
// and little endian. Of what is stored as codes and scales it is that of the values they
// stand for.
type ManifestEntry struct {
	Name   string  `json:"name"`
	DType  string  `json:"dtype"`
	Shape  []int64 `json:"shape"`
	SHA256 string  `json:"sha256"`
}

// NewManifest reads all tensors of a checkpoint once, as many at a time as the options
// say, and lists them by name.
func NewManifest(ctx context.Context, m *checkpoint.Model, o engine.Options) (*Manifest, error) {
	specs := slices.Clone(m.Specs())
	slices.SortFunc(specs, func(a, b tensor.Spec) int { return strings.Compare(a.Name, b.Name) })
	list := &Manifest{Schema: manifestSchema, Tensors: make([]ManifestEntry, len(specs))}
	tasks := make([]plan.Task, len(specs))
	for i, spec := range specs {
		tasks[i] = plan.Task{Name: spec.Name, Reads: spec.Size(), Scratch: chunkBytes, Do: func(ctx context.Context, _ int) error {
			hash, err := hashTensor(ctx, m, spec)
			list.Tensors[i] = ManifestEntry{spec.Name, spec.DType.String(), append([]int64{}, spec.Shape...), hash}
			return err
		}}
	}
	if err := engine.Each(ctx, tasks, o); err != nil {
		return nil, err
	}
	return list, nil
}

// hashTensor returns the SHA-256 of a tensor's bytes in hexadecimal digits.
func hashTensor(ctx context.Context, m *checkpoint.Model, spec tensor.Spec) (string, error) {
	src, err := m.Open(spec.Name)
	if err != nil {
		return "", err
	}
	h, buf := sha256.New(), make([]byte, min(chunkBytes, spec.Size()))
	for off := int64(0); off < spec.Size(); off += chunkBytes {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		p := buf[:min(chunkBytes, spec.Size()-off)]
		if err := readFull(src, p, off); err != nil {
			return "", readError(m, spec.Name, err)
		}
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// checkManifest compares the tensors of a folder with its manifest.json. A file of that
// name that states another schema is somebody else's.
func (p *provenance) checkManifest(ctx context.Context, m *checkpoint.Model, o Options) error {
	s := &subject{Report: p.Report, model: m}
	data, ok, err := s.sideFile(manifestFile, maxManifest)
	if err != nil || !ok || !strings.Contains(string(data), manifestSchema) {
		return err
	}
	listed, err := parseManifest(data)
	if err != nil {
		p.add("manifest-unreadable", "", "%s: %v", manifestFile, err)
		return nil
	}
	found, err := NewManifest(ctx, m, o.Engine)
	if err != nil {
		return err
	}
	for _, t := range found.Tensors {
		want, ok := listed[t.Name]
		delete(listed, t.Name)
		switch {
		case !ok:
			p.add("manifest-extra", t.Name, "it is not listed in %s", manifestFile)
		case want.DType != t.DType || !slices.Equal(want.Shape, t.Shape):
			p.add("manifest-differs", t.Name, "it is %s %s, in %s it is %s %s", t.DType, tensor.Shape(t.Shape), manifestFile, want.DType, tensor.Shape(want.Shape))
		case want.SHA256 != t.SHA256:
			p.add("manifest-differs", t.Name, "it has the hash %s, in %s it is %s", t.SHA256, manifestFile, want.SHA256)
		}
	}
	var missing []string
	for name := range listed {
		missing = append(missing, name)
	}
	slices.Sort(missing)
	for _, name := range missing {
		p.add("manifest-missing", name, "it is listed in %s and not there", manifestFile)
	}
	return nil
}

// parseManifest reads a manifest, by tensor.
func parseManifest(data []byte) (map[string]ManifestEntry, error) {
	if _, err := strictjson.ParseObject(data); err != nil {
		return nil, err // a name twice, or what is no JSON
	}
	var list Manifest
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	if list.Schema != manifestSchema {
		return nil, fmt.Errorf("its schema is %q, not %q", list.Schema, manifestSchema)
	}
	all := make(map[string]ManifestEntry)
	for _, t := range list.Tensors {
		raw, err := hex.DecodeString(t.SHA256)
		if err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("tensor %q: %q is no SHA-256", t.Name, t.SHA256)
		}
		if _, ok := all[t.Name]; ok {
			return nil, fmt.Errorf("tensor %q is listed twice", t.Name)
		}
		t.SHA256 = strings.ToLower(t.SHA256)
		all[t.Name] = t
	}
	return all, nil
}
