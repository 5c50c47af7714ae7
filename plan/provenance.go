package plan

import "github.com/loratool/loratool/internal/strictjson"

// Provenance describes an input as outputs record it: its role, its names that are
// safe to publish, and the SHA-256 of its files, which are by path in hashes. No path,
// host or time.
func (in Input) Provenance(hashes map[string]string) *strictjson.Object {
	o := strictjson.NewObject()
	o.Set("role", strictjson.NewString(in.Role))
	o.Set("name", strictjson.NewString(in.Name))
	if in.Note != "" {
		o.Set("revision", strictjson.NewString(in.Note))
	}
	if in.Role == "adapter" {
		if w, err := strictjson.NewFloat(in.Weight); err == nil {
			o.Set("weight", w)
		}
	}
	files := strictjson.NewObject()
	for _, f := range in.Files {
		files.Set(f.Name, strictjson.NewString(HashOf(hashes, f.Path)))
	}
	o.Set("sha256", files.Value())
	return o
}
